"""The plan of a fine-tuning: what belongs to the weights comes from the source, the rest from the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from medseg.data.datasets.cases import Dataset
from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.data.settings import Axis
from medseg.errors import ConfigError
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.models.catalog import MODELS, parse_options
from medseg.models.pretrained.config import is_published_name
from medseg.models.unet.config import UNetOptions
from medseg.planning.commented_yaml import Explained, ExplainedValues
from medseg.planning.explained_experiment import OtherModel, normalization_methods
from medseg.planning.processor_plans import patch_within_volumes, short_batch_size
from medseg.planning.propose import Proposal
from medseg.planning.training_length import TrainingLength
from medseg.runtime.formatting import single_line
from medseg.train.timing.nominal_processor import BACKWARD_COST
from medseg.volumes.orientation import AXES, reorientation

if TYPE_CHECKING:
    from medseg.fine_tuning.weight_source import WeightSource

FINE_TUNING_STEPS, FINE_TUNING_BUDGET = 25_000, "10m"
LOWER_RATE, SHORT_RATE = 0.3, 2.0
"""Factors of the learning rate of a new training: the usual one, and that of the outputs in a short training of a U-Net."""

_STEP = 32  # voxels, of the patch of a published model
_WARMUP, _LEAST_WARMUP, _MOST_WARMUP = 0.1, 20, 1000  # share of the steps, and steps
_LAYERWISE = 0.9
_NO_OPTIONS = ("name", "weights", "download")  # of the network of the source


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

    @property
    def is_unet(self) -> bool:
        """Whether the network is a U-Net."""
        return issubclass(MODELS.get(self.model).options, UNetOptions)

    def orientation(self, f: Fingerprint) -> str | None:
        """Return the axis codes of the arrays that the network will see.

        Args:
            f: Measurements of the dataset.

        Returns:
            Those of the source. If it keeps the axes of each file, those of the files, or None if these differ. With
            `keep_old_labels`, it is None, too, because the settings of the source must not change.
        """
        codes = self.saved.preprocessing.orientation
        stored = {case.orientation for case in f.cases}
        if codes is None and not self.keep_old_labels and len(stored) == 1:
            return stored.pop()
        return codes

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
    """Return a proposal with the axes, the spacing, the patch and the slices of the source.

    Args:
        f: Measurements of the dataset.
        p: The network that would be planned for it.
        start: The source.

    Returns:
        The proposal, whose network is not the one that is trained.
    """
    saved = start.saved
    codes = start.orientation(f) or AXES
    order, _ = reorientation(AXES, codes)  # the axis in RAS+ of each axis of the network
    wanted = saved.preprocessing.spacing or (None, None, None)
    spacing = tuple(p.spacing[axis] if mm is None else mm for mm, axis in zip(wanted, order, strict=True))
    sizes = [
        median([case.shape_after_crop[axis] * case.spacing[axis] / mm for case in f.cases])
        for mm, axis in zip(spacing, order, strict=True)
    ]
    across: Axis = saved.slice_axis if start.dims == 2 else order.index(p.slice_axis)  # type: ignore[assignment]
    batch = start.batch_size
    adopted = replace(
        p,
        kind_reason="",
        batch_size=batch or p.batch_size,
        trained_batch_size=batch or p.trained_batch_size,
        spacing=spacing,  # type: ignore[arg-type]
        slice_axis=across,
        patch=tuple(size for axis, size in enumerate(saved.window) if start.dims == 3 or axis != across),
        median_shape=(sizes[0], sizes[1], sizes[2]),
        orientation=codes,
    )
    patch, seen = adopted.patch, _seen(adopted)
    if start.source.published is not None:  # has seen images of many sizes
        patch = tuple(min(own, _STEP * ceil(size / _STEP)) for own, size in zip(patch, seen, strict=True))
    return replace(adopted, patch=patch, covered=_covered(patch, seen))


def fitted_to_time(p: Proposal, start: Start, network: OtherModel) -> Proposal:
    """Return a proposal whose steps are short enough for a training without a GPU, as far as the weights allow.

    Batches of a U-Net are as small as those of a new network. If a step still takes too long, its patches lose what
    exceeds the volumes, which is padding. They are not shrunk further, because the weights have learned from as much
    around each voxel.

    Args:
        p: The proposal with the patch of the source.
        start: The source.
        network: Divisor and arithmetic of its network.

    Returns:
        The proposal.
    """
    limit = p.length.step_gflop
    if p.length.on_gpu or not start.is_unet:
        return p
    most = start.batch_size or p.batch_size
    batch = short_batch_size(most, p.patch)
    flops = (network.forward_flops or 0) * prod(p.patch) * (1 + BACKWARD_COST) * batch
    if limit is None or flops <= limit * 1e9:
        return replace(p, trained_batch_size=batch)
    seen = _seen(p)
    patch = patch_within_volumes(p.patch, seen, network.divisor)
    batch = short_batch_size(most, patch)
    return replace(p, trained_batch_size=batch, patch=patch, covered=_covered(patch, seen))


def _seen(p: Proposal) -> list[float]:
    """Return the size of the median volume or slice along the axes of a patch."""
    return [size for axis, size in enumerate(p.median_shape) if p.dims == 3 or axis != p.slice_axis]


def _covered(patch: Sequence[int], seen: Sequence[float]) -> float:
    return prod(min(1.0, own / size) for own, size in zip(patch, seen, strict=True))


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
    changed["train"] = _train(_section(tree, "train"), p, start, requested=requested)
    if start.keep_old_labels:
        changed["data"] = {**_section(tree, "data"), **_old_labels(f, start, dataset)}
    if start.orientation(f) is None:
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
    codes = start.orientation(f)
    if codes == own.orientation:
        seen = "of the source, whose network sees its axes so"
    else:
        seen = "of all files; the source keeps the axes of each file, which are these"
    tree: dict[str, Explained] = {
        "orientation": Explained(codes, seen),
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
    tree = {"size": Explained(list(p.patch), _patch_reason(p, start))}
    if start.dims == 2:
        tree["slice_axis"] = Explained(start.saved.slice_axis, "of the source")
    return tree


def _patch_reason(p: Proposal, start: Start) -> str:
    if start.source.published is not None:
        return "as large as the images, 512 at most"
    source = [size for axis, size in enumerate(start.saved.window) if p.dims == 3 or axis != p.slice_axis]
    if list(p.patch) != source:
        return f"of the source ({' x '.join(map(str, source))}) without padding, so that more steps fit into the time"
    return "of the source, whose weights have seen as much around each voxel"


def _train(
    planned: Mapping[str, Explained | ExplainedValues],
    p: Proposal,
    start: Start,
    *,
    requested: bool,
) -> ExplainedValues:
    length = p.length
    tree: dict[str, Explained | ExplainedValues] = dict(planned)
    lengths = {"steps": "a tenth of a new training", "max_time": "a quarter of a new training on a processor"}
    for key, why in lengths.items():
        value = planned.get(key)
        if isinstance(value, Explained) and not requested:
            tree[key] = Explained(value.value, "; ".join([why, *value.reason.split("; ")[1:]]))
    if start.batch_size is not None:
        fewer = f"allows many steps in a short time; the source was trained with {start.batch_size}"
        why = "as the source was trained" if p.trained_batch_size == start.batch_size else fewer
        tree["batch_size"] = Explained(p.trained_batch_size, why)
    optimizer = planned["optimizer"]
    assert isinstance(optimizer, Explained)
    short = start.is_unet and not length.is_long
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
    if start.is_unet:
        values["layerwise_lr_decay"] = _LAYERWISE
        tree["freeze"] = Explained([], "[encoder] leaves the encoder unchanged, for very few cases")
    tree["optimizer"] = Explained(values, why)
    if start.keep_old_labels:
        tree["keep_old_labels"] = Explained(
            True,
            "where the dataset leaves open whether a voxel belongs to an old label, the source teaches its probability",
        )
    return tree


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
