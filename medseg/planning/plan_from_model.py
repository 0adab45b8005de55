"""The plan of a fine-tuning: what belongs to the weights comes from the source, the rest from the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from medseg.data.datasets.cases import Dataset
from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.errors import ConfigError
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.models.catalog import MODELS, parse_options
from medseg.models.pretrained.config import is_published_name
from medseg.models.unet.config import UNetOptions
from medseg.planning.commented_yaml import Explained, ExplainedValues
from medseg.planning.explained_experiment import normalization_methods
from medseg.planning.propose import Proposal
from medseg.planning.training_length import TrainingLength
from medseg.runtime.formatting import single_line

if TYPE_CHECKING:
    from medseg.fine_tuning.weight_source import WeightSource

FINE_TUNING_STEPS, FINE_TUNING_BUDGET = 25_000, "10m"
LOWER_RATE, SHORT_RATE = 0.3, 2.0
"""Factors of the learning rate of a new training: the usual one, and that of the outputs in a short training of a U-Net."""

_STEP = 32  # voxels, of the patch of a published model
_WARMUP, _LEAST_WARMUP, _MOST_WARMUP = 0.1, 20, 1000  # share of the steps, and steps
_LAYERWISE = 0.9
_NO_OPTIONS = ("name", "weights", "download")  # of the network of the source
_ALWAYS = "RAS"  # the axes that the planner knows the directions of


@dataclass(frozen=True)
class Start:
    """The trained model that a plan starts from.

    Attributes:
        source: Its weights, settings and labels.
        saved: Its settings.
        labels: Its labels.
        keep_old_labels: Whether the network keeps the labels of the source that the dataset does not have.
    """

    source: WeightSource
    saved: SavedModel
    labels: Labels
    keep_old_labels: bool

    @classmethod
    def read(cls, path: str | Path, *, keep_old_labels: bool) -> Start:
        """Read the source of a plan.

        Args:
            path: Model folder, run, checkpoint of nnU-Net v2, or model of a model zoo.
            keep_old_labels: See the attribute.

        Returns:
            The source.

        Raises:
            ConfigError: It is the second stage of a cascade, or its labels were to be kept and it predicts regions or was
                published.
            ModelError: It is missing, damaged, or no model.
        """
        from medseg.fine_tuning.weight_source import find_source, read_described_source  # loads torch

        source = read_described_source(find_source(path))
        if is_published_name(str(path)):
            source = replace(source, path=Path(path))
        saved, labels = source.saved, source.labels
        assert saved is not None
        assert labels is not None
        if saved.num_first_stage_labels:
            raise ConfigError(
                f"--from: {path}: found the second stage of a cascade, expected a network that sees images only. Give its "
                "first_stage folder, or another model."
            )
        if keep_old_labels and labels.regions:
            raise ConfigError(
                f"--keep-old-labels: {path}: found a network that predicts regions, expected one that predicts labels. Leave the "
                "option out."
            )
        if keep_old_labels and source.published is not None:
            raise ConfigError(
                f"--keep-old-labels: {path}: found a published model, expected a model that medseg or nnU-Net trained. Leave the option "
                "out."
            )
        return cls(source, saved, labels, keep_old_labels)

    @property
    def model(self) -> str:
        """The registered name of the network."""
        return str(self.saved.model["name"])

    @property
    def options(self) -> dict[str, Any]:
        """The options of the network."""
        return {key: value for key, value in self.saved.model.items() if key not in _NO_OPTIONS}

    @property
    def batch_size(self) -> int | None:
        """The patches per step that the source was trained with; None if that is not known."""
        found = self.saved.trained_on.get("batch_size")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def dims(self) -> int:
        """The number of spatial axes of the network."""
        return MODELS.get(self.model).dims

    def in_words(self, f: Fingerprint) -> list[str]:
        """Return lines about the source for the heading of the plan."""
        here = f.regions or [name for name, value in f.labels.items() if value != 0]
        known = self.labels.output_names[0 if self.labels.regions else 1 :]
        shared = [name for name in f.channel_names if name in self.saved.channel_names]
        parts = {
            "Labels that it knows": [name for name in here if name in known],
            "New labels": [name for name in here if name not in known],
            "Labels of it that the dataset does not have": [name for name in known if name not in here],
        }
        lines = [f"Starts from the weights of {single_line(self.saved.name)} ({self.source.path.name})."]
        lines += [f"{what}: {single_line(', '.join(names))}." for what, names in parts.items() if names]
        if not shared:
            lines.append(
                f"None of its channels ({single_line(', '.join(self.saved.channel_names))}) is in the dataset: name the same ones "
                "in model.adapt.channels."
            )
        return lines


def fine_tuning_length(*, on_gpu: bool, steps: int | None, time: str | None) -> TrainingLength:
    """Return the length of a fine-tuning: the requested one, or a part of that of a new training."""
    if steps is not None or time is not None:
        return TrainingLength(on_gpu, steps, time)
    return (
        TrainingLength(True, FINE_TUNING_STEPS) if on_gpu else TrainingLength(False, None, FINE_TUNING_BUDGET)
    )


def adopted_proposal(f: Fingerprint, p: Proposal, start: Start) -> Proposal:
    """Return a proposal with the spacing, the patch and the slices of the source.

    Args:
        f: Measurements of the dataset.
        p: The network that would be planned for it.
        start: The source.

    Returns:
        The proposal, whose network is not the one that is trained.
    """
    saved = start.saved
    wanted = saved.preprocessing.spacing or (None, None, None)
    spacing = tuple(own if mm is None else mm for mm, own in zip(wanted, p.spacing, strict=True))
    sizes = [
        median([case.shape_after_crop[axis] * case.spacing[axis] / spacing[axis] for case in f.cases])
        for axis in range(3)
    ]
    axis = saved.slice_axis if start.dims == 2 else p.slice_axis
    seen = [size for number, size in enumerate(sizes) if start.dims == 3 or number != axis]
    patch = tuple(size for number, size in enumerate(saved.window) if start.dims == 3 or number != axis)
    if start.source.published is not None:  # has seen images of many sizes
        patch = tuple(min(own, _STEP * ceil(size / _STEP)) for own, size in zip(patch, seen, strict=True))
    batch = start.batch_size
    return replace(
        p,
        kind_reason="",
        batch_size=batch or p.batch_size,
        trained_batch_size=batch or p.trained_batch_size,
        spacing=spacing,  # type: ignore[arg-type]
        slice_axis=axis,
        patch=patch,
        median_shape=(sizes[0], sizes[1], sizes[2]),
        covered=prod(min(1.0, own / size) for own, size in zip(patch, seen, strict=True)),
    )


def with_start(
    tree: ExplainedValues,
    f: Fingerprint,
    p: Proposal,
    start: Start,
    dataset: Dataset,
    *,
    requested: bool,
) -> ExplainedValues:
    """Return the values of a plan with those that belong to the weights of a trained model.

    Args:
        tree: The values that are planned for the dataset.
        f: Measurements of the dataset.
        p: The proposal with the spacing and the patch of the source.
        start: The source.
        dataset: The dataset.
        requested: Whether the length of the training was requested.

    Returns:
        The values with their reasons.
    """
    changed = dict(tree)
    changed["preprocess"] = _preprocess(f, start)
    changed["model"] = _model(start)
    changed["patch"] = _patch(p, start)
    if slices := _different(start.saved.slices.to_plain(), type(start.saved.slices)().to_plain()):
        changed["slices"] = {key: Explained(value, "of the source") for key, value in slices.items()}
    changed["train"] = _train(_section(tree, "train"), p.length, start, requested=requested)
    if start.keep_old_labels:
        changed["data"] = {**_section(tree, "data"), **_old_labels(f, start, dataset)}
    if start.saved.preprocessing.orientation != _ALWAYS:
        why = "the directions of the axes are those of each file"
        changed["augment"] = {k: v for k, v in _section(tree, "augment").items() if k != "mirror_axes"}
        changed["predict"] = {**_section(tree, "predict"), "mirror_axes": Explained([], why)}
    return changed


def _section(tree: ExplainedValues, name: str) -> dict[str, Explained | ExplainedValues]:
    section = tree[name]
    assert not isinstance(section, Explained)
    return dict(section)


def _different(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def _preprocess(f: Fingerprint, start: Start) -> ExplainedValues:
    own, saved = start.saved.preprocessing, start.saved
    spacing = "the file's own" if own.spacing is None else "mm"
    methods, intensities, adopted = [], {}, []
    for name, planned in zip(f.channel_names, normalization_methods(f), strict=True):
        if name not in saved.channel_names:
            methods.append(planned)
            continue
        channel = own.channels[saved.channel_names.index(name)]
        methods.append(channel.method)
        adopted.append(name)
        if channel.method == "ct":
            numbers = channel.to_plain()
            intensities[name] = {key: numbers[key] for key in ("low", "high", "mean", "std")}
    why = f"of the source for {', '.join(adopted)}" if adopted else "as planned for a new network"
    tree: dict[str, Explained] = {
        "orientation": Explained(own.orientation, "of the source, whose network sees its axes so"),
        "spacing": Explained(None if own.spacing is None else list(own.spacing), f"{spacing}, of the source"),
        "normalize": Explained(methods, why),
        "crop_to_nonzero": Explained(own.crop_to_nonzero, "as for the source"),
    }
    if intensities:
        why = "statistics of the source's dataset, in which its weights see intensities"
        tree["intensities"] = Explained(intensities, why)
    return tree


def _model(start: Start) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = {
        "name": Explained(
            start.model, "of the source; its options below are those that differ from the defaults"
        ),
        "weights": Explained(
            str(start.source.path), "outputs are matched by the names of labels, inputs by those of channels"
        ),
    }
    if start.saved.members > 1:
        why = f"one of the {start.saved.members} networks of the ensemble (from 0)"
        tree["adapt"] = {"member": Explained(0, why)}
    defaults = parse_options(start.model).to_plain()
    return tree | {key: Explained(value) for key, value in _different(start.options, defaults).items()}


def _patch(p: Proposal, start: Start) -> ExplainedValues:
    tree = {"size": Explained(list(p.patch), _patch_reason(start))}
    if start.dims == 2:
        tree["slice_axis"] = Explained(start.saved.slice_axis, "of the source")
    return tree


def _patch_reason(start: Start) -> str:
    if start.source.published is not None:
        return "as large as the images, 512 at most"
    return "of the source, whose weights have seen as much around each voxel"


def _train(
    planned: Mapping[str, Explained | ExplainedValues],
    length: TrainingLength,
    start: Start,
    *,
    requested: bool,
) -> ExplainedValues:
    tree: dict[str, Explained | ExplainedValues] = dict(planned)
    lengths = {"steps": "a tenth of a new training", "max_time": "a quarter of a new training on a processor"}
    for key, why in lengths.items():
        value = planned.get(key)
        if isinstance(value, Explained) and not requested:
            tree[key] = Explained(value.value, "; ".join([why, *value.reason.split("; ")[1:]]))
    if start.batch_size is not None:
        tree["batch_size"] = Explained(start.batch_size, "as the source was trained")
    optimizer = planned["optimizer"]
    assert isinstance(optimizer, Explained)
    short = _is_unet(start) and not length.is_long
    factor = SHORT_RATE if short else LOWER_RATE
    warmup = round(_WARMUP * (length.total_steps or 0))
    values = {**optimizer.value, "lr": float(f"{optimizer.value['lr'] * factor:.3g}")}
    values["warmup_steps"] = min(max(_LEAST_WARMUP, warmup), _MOST_WARMUP)
    if short:
        why = (
            f"{factor:g} times the rate of a new training, so that new outputs are learned in few steps, and less towards the "
            "first layers, which fit most data; after a warm-up"
        )
    else:
        why = (
            f"{factor:g} times the rate of a new training, after a warm-up, so that the weights are not lost"
        )
    if _is_unet(start):
        values["layerwise_lr_decay"] = _LAYERWISE
        tree["freeze"] = Explained([], "[encoder] leaves the encoder unchanged, for very few cases")
    tree["optimizer"] = Explained(values, why)
    if start.keep_old_labels:
        tree["keep_old_labels"] = Explained(
            True,
            "where the dataset leaves open whether a voxel belongs to an old label, the source teaches its probability",
        )
    return tree


def _is_unet(start: Start) -> bool:
    return issubclass(MODELS.get(start.model).options, UNetOptions)


def _old_labels(f: Fingerprint, start: Start, dataset: Dataset) -> ExplainedValues:
    """Return the labels of dataset and source together, and which of them the cases have."""
    if f.regions:
        raise ConfigError(
            f"--keep-old-labels: {f.dataset}: found regions, expected labels. Leave the option out, or set data.regions={{}}."
        )
    values = dict(f.labels)
    for label in start.labels.foreground:
        if label.name not in values:
            free = label.value if label.value not in values.values() else max(values.values()) + 1
            values[label.name] = free
    here = [name for name, value in f.labels.items() if value != 0]
    annotated: dict[str, list[str]] = {"*": here}
    annotated |= {
        case.id: list(case.annotated) for case in dataset.labelled_cases if case.annotated is not None
    }
    old = [name for name in values if name not in f.labels]
    return {
        "labels": Explained(values, f"those of the dataset, and {', '.join(old) or 'none'} of the source"),
        "partially_annotated": Explained(
            annotated, "the dataset's background may be any label of the source that it does not annotate"
        ),
    }
