"""Import of trained nnU-Net v2 models as model folders (Isensee et al., Nature Methods 2021; arXiv:2404.09556).

nnU-Net's networks see a file's axes in reversed order, permuted by ``transpose_forward``; medseg's see them in the
order of the file. The network is therefore permuted, not the image: kernels, strides, window, spacing and mirror axes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.data.datasets.dataset_json import channel_names, parse_labels
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ConfigError, ModelError
from medseg.inference.reference_output import write_reference
from medseg.interop.nnunet.checkpoint_files import Checkpoint, convert_weights, read_checkpoint
from medseg.interop.nnunet.plans import Plans, parse_plans, read_plans
from medseg.interop.nnunet.postprocessing import find_postprocessing, in_words, read_postprocessing
from medseg.interop.nnunet.training_record import training_record
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import write_model_folder
from medseg.model_folder.licences import licence_in, state_licences
from medseg.model_folder.settings import PredictSettings, SavedModel
from medseg.models import build_model, parse_options
from medseg.models.unet.network_config import UNetConfig
from medseg.runtime.machine import installed_version
from medseg.storage.archives import extract
from medseg.storage.atomic import make_folder
from medseg.storage.json_files import read_object
from medseg.volumes.orientation import checked_axcodes

Which = Literal["final", "best"]
_AS_NNUNET = PredictSettings(thick_slices="nearest", skip_empty=False, crop_to_body=False)
_DEPTHS = (1, 2)  # an exported archive contains DATASET/TRAINER__PLANS__CONFIGURATION/plans.json


def import_nnunet(
    source: str | Path,
    output: str | Path,
    *,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: Which = "final",
    orientation: str | None = None,
    first_stage: str | Path | None = None,
    licence: str | None = None,
) -> SavedModel:
    """Convert a trained nnU-Net v2 model to a model folder with the same predictions.

    Args:
        source: Folder ``TRAINER__PLANS__CONFIGURATION`` with ``plans.json``, ``dataset.json`` and ``fold_*``, a folder
            that contains it, or the zip of an exported model.
        output: New model folder.
        configuration: Configuration, such as ``3d_fullres``; None for the one in the name of the source.
        folds: Folds, such as ``("0", "1")`` or ``("all",)``; None for all numbered folds. Several form an ensemble.
        checkpoint: ``final``, the last epoch, which nnU-Net uses for prediction, or ``best``, the best in validation.
        orientation: Axis codes of the training files, if all are known to have the same; files are then reoriented to
            it before prediction. None keeps the axes of each file, as nnU-Net does.
        first_stage: Trained folder of the first stage of a cascade; None for the folder next to the second stage. Both
            stages become one model folder; `folds`, `checkpoint`, `orientation` and `licence` apply to both.
        licence: Licence of the weights, for the model card; None if it is not known.

    Returns:
        The settings that were written.

    Raises:
        ConfigError: An argument or a value in the source's files does not fit.
        DataError: A file of the source is missing or damaged.
        ModelError: The source is incomplete, or uses something that medseg cannot reproduce: another network,
            preprocessor, resampling or post-processing.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise ConfigError(
            f"{output}: exists already, expected a new folder. Choose another name, or remove it."
        )
    options = _Options(folds, checkpoint, orientation, licence)
    stage = None if first_stage is None else Path(first_stage)
    make_folder(output.parent)
    with tempfile.TemporaryDirectory(prefix=".medseg-", dir=output.parent) as scratch:
        folder = source if source.is_dir() else extract(source, Path(scratch) / source.stem)
        saved = _import_folder(_trained_folder(folder, configuration), output, configuration, options, stage)
    state_licences(saved, output)
    return saved


@dataclass(frozen=True)
class _Options:
    """The options that apply to all stages; see `import_nnunet`."""

    folds: Sequence[str] | None
    checkpoint: Which
    orientation: str | None
    licence: str | None = None


def _import_folder(
    folder: Path, output: Path, configuration: str | None, options: _Options, first_stage: Path | None
) -> SavedModel:
    configuration = configuration or _configuration_of(folder)
    plans = read_plans(folder / "plans.json", configuration)
    axes = FileAxes(plans.transpose_forward, plans.configuration.architecture.arch_kwargs.dims)
    names, labels = _dataset(folder / "dataset.json")
    checkpoints = _checkpoints(folder, options.folds, options.checkpoint)
    first = read_checkpoint(checkpoints[0])
    if first.configuration != configuration:
        raise ModelError(
            f"{checkpoints[0]}: init_args.configuration: found {first.configuration!r}, expected {configuration!r}. "
            f"Import it with --configuration {first.configuration}."
        )
    stage = _first_stage_folder(folder, plans.configuration.previous_stage, first_stage)
    stage_labels = len(labels.foreground) if stage is not None else 0
    preprocessing = _preprocessing(plans, axes, options.orientation, len(names))
    saved = _settings(folder, plans, first, preprocessing, names).replace(
        members=len(checkpoints),
        num_first_stage_labels=stage_labels,
        trained_on=_origin(plans, configuration, first, checkpoints),
    )
    record = training_record(folder, plans, len(names))
    card = {"licence": options.licence, "dataset_licence": licence_in(folder / "dataset.json")}
    saved = _with_postprocessing(saved, folder, labels).replace(
        training_data=None if record is None else record.to_plain(),
        card=card,
    )
    weights = _weights(
        checkpoints, saved, labels.num_outputs, plans.configuration.architecture.kind, axes.order
    )
    parameters = _parameters(saved, labels.num_outputs) * saved.members
    with tempfile.TemporaryDirectory(prefix=".medseg-", dir=output.parent) as scratch:
        inner = None
        if stage is not None:
            inner = Path(scratch) / "stage"
            _import_folder(stage, inner, plans.configuration.previous_stage, options, None)
        write_model_folder(output, weights, saved, labels, parameters, inner, write_reference)
    return saved


def _settings(
    where: Path, plans: Plans, first: Checkpoint, preprocessing: Preprocessing, names: tuple[str, ...]
) -> SavedModel:
    """Return the settings of a single network that was trained with these plans."""
    axes = FileAxes(plans.transpose_forward, plans.configuration.architecture.arch_kwargs.dims)
    network = plans.configuration.architecture.model(axes.order)
    if first.has_batch_norm:
        network["norm"] = "batch"
    return SavedModel.parse(
        {
            "medseg": installed_version(),
            "name": plans.dataset_name,
            "model": {"name": network["name"], **_resolved_options(network, where)},
            "channel_names": names,
            "preprocessing": preprocessing,
            "window": axes.per_file_axis(plans.configuration.patch_size, across=1),
            "slice_axis": axes.slice_axis,
            "predict": _AS_NNUNET.replace(mirror_axes=axes.sorted_file_axes(first.mirror_axes)),
        },
        source=str(where),
    )


def read_single_checkpoint(path: Path) -> tuple[SavedModel, Labels, dict[str, Tensor]]:
    """Read a ``checkpoint_*.pth`` by itself; nnU-Net stores plans and description of the dataset in it.

    Args:
        path: The checkpoint.

    Returns:
        Settings and labels as those of an imported model folder with this network alone, and its weights.

    Raises:
        ConfigError: A value in the plans does not fit.
        ModelError: The file is missing or damaged, is no checkpoint of nnU-Net, is the second stage of a cascade, or uses
            something that medseg cannot reproduce.
    """
    first = read_checkpoint(path)
    if not first.plans or not first.dataset:
        raise ModelError(
            f"{path}: init_args: found no plans and dataset_json, expected those that nnU-Net v2 stores. Import the trained "
            "folder with medseg import nnunet, and give the model folder."
        )
    plans = parse_plans(first.plans, first.configuration, path)
    if plans.configuration.previous_stage is not None:
        raise ModelError(
            f"{path}: found the second stage of a cascade, expected a network that sees images only. Import the folder with "
            "medseg import nnunet, and give the model folder."
        )
    axes = FileAxes(plans.transpose_forward, plans.configuration.architecture.arch_kwargs.dims)
    names, labels = _parsed_dataset(first.dataset, path)
    preprocessing = _preprocessing(plans, axes, None, len(names))
    saved = _settings(path, plans, first, preprocessing, names).replace(
        trained_on=_origin(plans, first.configuration, first, [path])
    )
    kind = plans.configuration.architecture.kind
    (weights,) = _weights([path], saved, labels.num_outputs, kind, axes.order)
    return saved, labels, weights


def _first_stage_folder(folder: Path, configuration: str | None, given: Path | None) -> Path | None:
    """Return the trained folder of the first stage of a cascade; None if the model is not a cascade."""
    if configuration is None:
        if given is not None:
            raise ConfigError(
                f"--first-stage: found {given}, expected none, because {folder} is not a cascade. Remove the option."
            )
        return None
    place = given or folder.with_name(f"{folder.name.rpartition('__')[0]}__{configuration}")
    if given is None and not place.is_dir():
        raise ModelError(
            f"{folder}: found a cascade after {configuration}, expected that stage at {place}. Give its folder with "
            "--first-stage."
        )
    return _trained_folder(place, configuration)


@dataclass(frozen=True)
class FileAxes:
    """The correspondence between the axes of nnU-Net's tensors and those of a file.

    Attributes:
        transpose: ``transpose_forward`` of the plans.
        dims: Number of spatial axes of the network; a 2D network sees slices perpendicular to tensor axis 0.
    """

    transpose: tuple[int, int, int]
    dims: int

    @property
    def file_axes(self) -> tuple[int, ...]:
        """The file axis of each tensor axis of a volume."""
        return tuple(2 - axis for axis in self.transpose)

    @property
    def slice_axis(self) -> int:
        """The file axis perpendicular to the slices of a 2D network; 2 for a 3D network, which ignores it."""
        return self.file_axes[0] if self.dims == 2 else 2

    @property
    def order(self) -> tuple[int, ...]:
        """The axis of nnU-Net's network for each axis of medseg's network."""
        places = self.file_axes[-self.dims :]
        return tuple(sorted(range(self.dims), key=lambda axis: places[axis]))

    def per_file_axis(self, values: Sequence[Any], across: Any) -> tuple[Any, ...]:
        """Return one value per file axis from one per network axis; the slice axis of a 2D network gets `across`."""
        turned = [values[axis] for axis in self.order]
        if self.dims == 2:
            turned.insert(self.slice_axis, across)
        return tuple(turned)

    def sorted_file_axes(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return the file axes of network axes, in ascending order; axes that the network does not have are ignored."""
        places = self.file_axes[-self.dims :]
        return tuple(sorted(places[axis] for axis in axes if axis < self.dims))


def _trained_folder(source: Path, configuration: str | None) -> Path:
    """Return the only folder in `source`, or `source` itself, with a ``plans.json`` of the configuration."""
    if (source / "plans.json").is_file():
        return source
    patterns = ("*/" * depth + "plans.json" for depth in _DEPTHS)
    found = sorted(path.parent for pattern in patterns for path in source.glob(pattern))
    fitting = [f for f in found if configuration is None or f.name.rsplit("__", 1)[-1] == configuration]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ModelError(
            f"{source}: found no trained model{' of ' + configuration if configuration else ''}, expected plans.json, "
            "dataset.json and fold_*. Give the folder TRAINER__PLANS__CONFIGURATION."
        )
    shown = ", ".join(str(folder.relative_to(source)) for folder in fitting)
    raise ModelError(f"{source}: found {len(fitting)} models: {shown}. Choose one, or give --configuration.")


def _configuration_of(folder: Path) -> str:
    parts = folder.resolve().name.split("__")
    if len(parts) != 3:
        raise ModelError(
            f"{folder}: the name does not say which configuration it is, expected TRAINER__PLANS__CONFIGURATION. "
            "Give it with --configuration."
        )
    return parts[2]


def _dataset(path: Path) -> tuple[tuple[str, ...], Labels]:
    """Return channel names and labels; the ignore label of training is not a class of the network."""
    return _parsed_dataset(read_object(path), path)


def _parsed_dataset(values: dict[str, Any], path: Path) -> tuple[tuple[str, ...], Labels]:
    labels = parse_labels(values.get("labels"), f"{path}: labels", values.get("regions_class_order"))
    if not labels.regions and labels.values != tuple(range(len(labels))):
        raise ModelError(
            f"{path}: labels: found the values {list(labels.values)}, expected 0, 1, 2 and so on without gaps. Use "
            "the dataset.json with which the model was trained."
        )
    return channel_names(values, str(path)), labels


def _with_postprocessing(saved: SavedModel, folder: Path, labels: Labels) -> SavedModel:
    """Return the settings with the post-processing that was learned in cross-validation, if there is one."""
    file = find_postprocessing(folder, saved.trained_on["folds"].split(", "))
    if file is None:
        return saved
    if file.suffix == ".pkl":
        note = f"not imported: found {file.name} without postprocessing.json, and pickle files are not read"
        return saved.replace(trained_on={**saved.trained_on, "postprocessing": note})
    predict = read_postprocessing(file, labels, saved.predict)
    note = f"{in_words(predict)} ({file.parent.name})"
    return saved.replace(predict=predict.to_plain(), trained_on={**saved.trained_on, "postprocessing": note})


def _checkpoints(folder: Path, folds: Sequence[str] | None, which: Which) -> list[Path]:
    """Return the checkpoint files of the folds, in order; by default all numbered folds, or else ``fold_all``."""
    name = f"checkpoint_{which}.pth"
    if folds is None:
        found = sorted(folder.glob(f"fold_*/{name}"), key=lambda path: path.parent.name)
        numbered = [path for path in found if path.parent.name != "fold_all"]
        if not found:
            raise ModelError(
                f"{folder}: found no fold_*/{name}, expected at least one. Finish the training of a fold."
            )
        return numbered or found
    if not folds or len(set(folds)) < len(folds) or not all(f == "all" or f.isdecimal() for f in folds):
        raise ConfigError(
            f"folds: found {', '.join(folds) or 'none'}, expected numbers without repetition, or all."
        )
    paths = [folder / f"fold_{fold}" / name for fold in folds]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        there = sorted(path.parent.name for path in folder.glob(f"fold_*/{name}"))
        raise ModelError(
            f"{missing}: no such file, found only {', '.join(there) or 'none'}. Choose one of these."
        )
    return paths


def _resolved_options(network: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = {key: value for key, value in network.items() if key != "name"}
    return parse_options(network["name"], options, source=str(folder / "plans.json")).to_plain()


def _preprocessing(plans: Plans, axes: FileAxes, orientation: str | None, channels: int) -> Preprocessing:
    normalizations = plans.normalizations()
    if len(normalizations) != channels:
        raise ModelError(
            f"plans.json: normalization_schemes: found {len(normalizations)}, expected {channels}, one per "
            "channel of dataset.json. Use the two files of the same training."
        )
    wanted = None if orientation is None else checked_axcodes(orientation)
    if plans.orientation is not None and wanted not in (None, plans.orientation):
        raise ConfigError(
            f"--orientation: found {wanted}, expected {plans.orientation}, to which this model's reader reorients "
            "all files. Remove the option."
        )
    return Preprocessing(
        orientation=plans.orientation or wanted,
        spacing=axes.per_file_axis(plans.configuration.spacing, across=None),
        crop_to_nonzero=True,
        channels=normalizations,
    )


def _origin(
    plans: Plans, configuration: str, first: Checkpoint, checkpoints: Sequence[Path]
) -> dict[str, Any]:
    """Return where the model comes from, as the entries of a section in its README."""
    return {
        "imported_from": "nnU-Net v2",
        "dataset": plans.dataset_name,
        "trainer": first.trainer,
        "plans": plans.plans_name,
        "configuration": configuration,
        "folds": ", ".join(path.parent.name.removeprefix("fold_") for path in checkpoints),
        "checkpoint": checkpoints[0].stem,
        "epochs": first.epochs,
    }


def _weights(
    checkpoints: Sequence[Path], saved: SavedModel, classes: int, kind: str, order: Sequence[int]
) -> Iterator[dict[str, Tensor]]:
    """Yield the state dicts of all folds, with one in memory at a time."""
    options = {key: value for key, value in saved.model.items() if key != "name"}
    sizes = {"in_channels": saved.in_channels, "out_channels": classes}
    config = UNetConfig.parse({**options, **sizes}, source="plans.json")
    for path in checkpoints:
        weights = read_checkpoint(path).weights
        try:
            yield convert_weights(weights, config, kind, order)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None


def _parameters(saved: SavedModel, classes: int) -> int:
    """Return the number of parameters of one member, without allocating them."""
    options = {key: value for key, value in saved.model.items() if key != "name"}
    with torch.device("meta"):
        model = build_model(
            saved.model["name"], in_channels=saved.in_channels, num_classes=classes, **options
        )
    return sum(parameter.numel() for parameter in model.parameters())
