"""Import of a task of TotalSegmentator as one model folder (Wasserthal et al. 2023; arXiv:2208.05868).

A task consists of one or several networks of nnU-Net v2, each in a folder ``DatasetNNN_NAME``. TotalSegmentator reorients an
image to RAS, resamples its intensities, lets each network find its labels with windows that are not mirrored, writes the label
maps over one another, and brings the result back by the nearest voxel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor

from medseg.errors import ConfigError, ModelError
from medseg.inference.reference_output import write_reference
from medseg.interop.nnunet.model import import_nnunet
from medseg.interop.totalsegmentator.tasks import TASKS, Task, task_named
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import member_path, write_model_folder
from medseg.model_folder.licences import state_licences
from medseg.model_folder.settings import SavedModel
from medseg.storage.atomic import make_folder

Order = Literal[1, 3]
_ORIENTATION = "RAS"
_DATASET = "Dataset[0-9][0-9][0-9]_*"
_SAME = ("model", "window", "slice_axis")


def import_totalsegmentator(
    source: str | Path, output: str | Path, *, task: str | None = None, resampling_order: Order = 1
) -> SavedModel:
    """Convert the trained networks of a task of TotalSegmentator to one model folder.

    Args:
        source: Folder that holds the folders ``DatasetNNN_NAME`` of the task, such as ``~/.totalsegmentator/nnunet/results``.
        output: New model folder.
        task: Name of the task, such as ``total`` or ``total_fast``; None if `source` holds the data sets of one task only.
        resampling_order: Spline order with which intensities are resampled: 1 as in TotalSegmentator from version 2.16 on, 3 as
            before.

    Returns:
        The settings that were written.

    Raises:
        ConfigError: The task is unknown, or an argument does not fit.
        DataError: A file of the source is missing or damaged.
        ModelError: A data set of the task is missing, or its networks cannot be reproduced or combined.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise ConfigError(
            f"{output}: exists already, expected a new folder. Choose another name, or remove it."
        )
    chosen = _only_task(source) if task is None else task_named(task)
    trained = [_trained_folder(source, number, chosen) for number in chosen.datasets]
    make_folder(output.parent)
    with tempfile.TemporaryDirectory(prefix=".medseg-", dir=output.parent) as scratch:
        parts = [
            _imported(folder, Path(scratch) / str(number), chosen) for number, folder in enumerate(trained)
        ]
        saved, labels = _combined(parts, chosen, resampling_order)
        parameters = sum(tensor.numel() for weights in _weights(parts) for tensor in weights.values())
        first_stage = None
        if chosen.crop:
            first_stage = Path(scratch) / "first_stage"
            import_totalsegmentator(
                source, first_stage, task=chosen.crop_task, resampling_order=resampling_order
            )
        write_model_folder(
            output, _weights(parts), saved, labels, parameters, first_stage, finish=write_reference
        )
    state_licences(saved, output)
    return saved


@dataclass(frozen=True)
class _Imported:
    """The model folder of one network of a task.

    Attributes:
        folder: The model folder.
        saved: Its settings.
        labels: Its labels, with the names of its own data set.
    """

    folder: Path
    saved: SavedModel
    labels: Labels


def _datasets(source: Path) -> dict[int, list[Path]]:
    """Return the folders ``DatasetNNN_NAME`` by number: `source` itself if it is one, else those in it."""
    folders = [source] if source.match(_DATASET) else sorted(source.glob(_DATASET))
    found: dict[int, list[Path]] = {}
    for folder in folders:
        if folder.is_dir():
            found.setdefault(int(folder.name[7:10]), []).append(folder)
    return found


def _only_task(source: Path) -> Task:
    """Return the only task whose data sets are in a folder, or raise an error."""
    numbers = _datasets(source)
    found = [one for one in TASKS.values() if set(one.datasets) <= set(numbers)]
    coarse = {one.crop_task for one in found if one.crop}
    found = [one for one in found if one.name not in coarse]  # those are there for another task
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{source}: found the data sets of {len(found)} tasks: {', '.join(one.name for one in found)}, expected one. Choose "
            "it with --task."
        )
    listed = ", ".join(map(str, numbers)) or "none"
    raise ModelError(
        f"{source}: found the data sets {listed}, expected all of a task, such as 291 to 295 of total, in folders "
        "DatasetNNN_NAME. Give the folder nnunet/results of TotalSegmentator, or import a single model with medseg import "
        "nnunet."
    )


def _trained_folder(source: Path, number: int, task: Task) -> Path:
    """Return the folder ``TRAINER__PLANS__CONFIGURATION`` of a data set."""
    pattern = f"*__*__{task.configuration}/plans.json"
    found = [
        path.parent for folder in _datasets(source).get(number, []) for path in sorted(folder.glob(pattern))
    ]
    if len(found) == 1:
        return found[0]
    what = ", ".join(map(str, found)) or "none"
    raise ModelError(
        f"{source}: task {task.name}: found {len(found)} models of data set {number} ({what}), expected one: "
        f"Dataset{number:03d}_NAME/{pattern}. "
        f"{'Remove the others.' if found else 'Download the weights of the task with TotalSegmentator first.'}"
    )


def _imported(trained: Path, folder: Path, task: Task) -> _Imported:
    """Import one network as a model folder of its own."""
    saved = import_nnunet(trained, folder, folds=None if task.all_folds else ("0",), orientation=_ORIENTATION)
    if saved.num_first_stage_labels or len(saved.channel_names) != 1:
        raise ModelError(
            f"{trained}: found {saved.in_channels} input channels, expected one image, as in all tasks of TotalSegmentator that "
            "medseg imports. Import it with medseg import nnunet."
        )
    labels = Labels.from_tsv(folder / "labels.tsv")
    if labels.regions:
        raise ModelError(
            f"{trained}: found a network of regions, expected one of labels. Import it with medseg import nnunet."
        )
    return _Imported(folder, saved, labels)


def _combined(parts: Sequence[_Imported], task: Task, order: Order) -> tuple[SavedModel, Labels]:
    """Return the settings and labels of the model folder of a task."""
    names = iter(task.labels)
    own = [tuple(name for _, name in zip(part.labels.foreground, names, strict=False)) for part in parts]
    found = sum(len(part.labels.foreground) for part in parts)
    if found != len(task.labels):
        raise ModelError(
            f"task {task.name}: found {found} labels in {len(parts)} networks, expected {len(task.labels)}. Use the weights of the "
            "version of TotalSegmentator for which the task is known, or import the networks with medseg import nnunet."
        )
    first = parts[0].saved
    for part, number in zip(parts, task.datasets, strict=True):
        _check_same(first, part.saved, number)
    preprocessing = first.preprocessing
    if task.spacing is not None:
        preprocessing = preprocessing.replace(spacing=task.spacing, resample_raw=order)
    several = len(parts) > 1
    saved = first.replace(
        name=f"TotalSegmentator_{task.name}",
        preprocessing=preprocessing,
        members=len(parts) if several else first.members,
        parts=tuple(map(_part, parts, own)) if several else (),
        crop_around={"labels": task.crop.split()} if task.crop else None,
        # TotalSegmentator neither mirrors windows nor applies what nnU-Net's cross-validation chose.
        predict=first.predict.merged(
            {
                "overlap": task.overlap,
                "mirror_axes": (),
                "keep_largest_foreground": False,
                "keep_largest": task.keep_largest.split(),
                "min_component_ml": dict(task.min_component_ml),
            }
        ).to_plain(),
        trained_on={
            "imported_from": "TotalSegmentator",
            "task": task.name,
            "datasets": ", ".join(part.saved.name for part in parts),
            "trainers": ", ".join(dict.fromkeys(part.saved.trained_on["trainer"] for part in parts)),
            "folds": first.trained_on["folds"],
        },
        training_data=None,
        card=first.card.replace(licence=task.licence).to_plain(),
    )
    return saved, Labels.from_names({"background": 0, **{name: i for i, name in enumerate(task.labels, 1)}})


def _part(part: _Imported, names: tuple[str, ...]) -> dict[str, object]:
    """Return the fields of a part."""
    (normalization,) = part.saved.preprocessing.channels
    return {"name": part.saved.name, "labels": names, "normalization": normalization.to_plain()}


def _check_same(first: SavedModel, other: SavedModel, number: int) -> None:
    """Raise `ModelError` unless two networks can share an image, windows and one pass."""
    pairs = [(key, getattr(other, key), getattr(first, key)) for key in _SAME]
    pairs.append(("spacing", other.preprocessing.spacing, first.preprocessing.spacing))
    different = next(((key, found, wanted) for key, found, wanted in pairs if found != wanted), None)
    if different is not None:
        key, found, wanted = different
        raise ModelError(
            f"data set {number}: {key}: found {found}, expected {wanted} as in the first part of the task, because the parts share "
            "one pass over the image. Import the networks with medseg import nnunet."
        )


def _weights(parts: Sequence[_Imported]) -> Iterator[dict[str, Tensor]]:
    """Yield the state dicts of all networks, with one in memory at a time."""
    for part in parts:
        for member in range(part.saved.members):
            yield load_file(member_path(part.folder, part.saved, member))
