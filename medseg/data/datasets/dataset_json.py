"""Datasets described by a ``dataset.json``: those of the Medical Segmentation Decathlon and of nnU-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.layout_registry import register_layout
from medseg.data.datasets.names import CHANNEL_FILE, folder_name, path_inside, visible_files
from medseg.errors import DataError, warn_once
from medseg.io.files import NATURAL_IMAGES, stem_of, suffix_of
from medseg.labels.label_files import LARGEST_VALUE
from medseg.labels.label_table import Labels, unnamed_label
from medseg.runtime.formatting import pluralise
from medseg.storage.json_files import read_object

_LISTS = ("training", "validation", "test")


def is_msd(path: Path) -> bool:
    """Return whether there is a ``dataset.json`` with a list ``training`` and without the ``file_ending`` of nnU-Net v2."""
    description = _description(path)
    if not description.is_file():
        return False
    values = read_object(description)
    return "training" in values and "file_ending" not in values


def is_nnunet(path: Path) -> bool:
    """Return whether there is a ``dataset.json`` of another kind than that of `is_msd`."""
    return _description(path).is_file() and not is_msd(path)


@register_layout("msd", recognise=is_msd, lists_paths=True)
def read_msd(path: Path, files_root: str | None = None) -> Dataset:
    """Read the layout of the Decathlon: lists ``training`` (image, label) and ``test`` (images only).

    A list ``validation``, which other datasets of this layout have, is read like ``training``; the experiment decides on
    the split. Label maps in ``test`` are not read, so that no test case is trained on, and other lists of images are not
    read either; a warning names both.

    An image may be a list of files, one per channel. nnU-Net v1 wrote the same lists, with images named without the
    ``_0000`` of their files; those are found. An entry of ``training`` may list its annotated labels:
    ``"labels": ["liver"]``. With ``"instances": true``, label maps are read as instance maps.

    Args:
        path: The dataset's folder, or its ``dataset.json``.
        files_root: Another folder that paths may point into.

    Returns:
        The dataset.

    Raises:
        DataError: The ``dataset.json`` is malformed, or a path leaves the folder and `files_root`.
    """
    root, description, values = _described(path)
    where = str(description)
    listed = {
        key: [
            _msd_case(entry, root, f"{where}: {key}[{i}]", files_root)
            for i, entry in enumerate(_list_of(values, key, where))
        ]
        for key in _LISTS
    }
    _warn_of_unread(values, listed["test"], where)
    tests = [replace(case, label=None) for case in listed["test"]]
    return _dataset(root, where, values, [*listed["training"], *listed["validation"], *tests])


def _warn_of_unread(values: Mapping[str, Any], tests: Sequence[Case], where: str) -> None:
    """Warn of label maps of test cases, and of lists of images under other names."""
    labelled = sum(case.label is not None for case in tests)
    if labelled:
        warn_once(
            f"{where}: test: found {pluralise(labelled, 'label map')}, expected images only; test cases are not trained on, so these are not "
            "read. List the cases in training to train on them."
        )
    for key, entries in values.items():
        if key not in _LISTS and isinstance(entries, list) and entries and _lists_image(entries[0]):
            warn_once(
                f"{where}: {key}: found a list of {pluralise(len(entries), 'case')}, expected the names {', '.join(_LISTS)}; it is not read. "
                "Rename it, or remove it."
            )


def _lists_image(entry: Any) -> bool:
    return isinstance(entry, dict) and "image" in entry


def _msd_case(entry: Any, root: Path, where: str, files_root: str | None) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "image" not in entry:
        raise DataError(f'{where}: found {entry!r}, expected {{"image": path, "label": path}}. Correct it.')
    names = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    images = [path_inside(root, name, f"{where}: image", files_root) for name in names]
    label = entry.get("label")
    if label is not None:
        label = path_inside(root, label, f"{where}: label", files_root)
    if not images:
        raise DataError(f"{where}: image: found an empty list, expected at least one path. Name its files.")
    case_id = stem_of(images[0])
    if len(images) == 1 and not images[0].exists():
        images = _channel_files(images[0]) or images
    elif len(images) > 1 and (match := CHANNEL_FILE.fullmatch(case_id)):
        case_id = match["id"]
    return Case(
        case_id, tuple(images), label, annotated=_annotated_labels(entry.get("labels"), f"{where}: labels")
    )


def _annotated_labels(names: Any, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f'{where}: found {names!r}, expected a list of the annotated labels, such as ["liver"]. Correct it.'
        )
    return tuple(names)


def _channel_files(image: Path) -> list[Path]:
    """Return the files ``<stem>_0000.<ext>``, ...: nnU-Net v1 lists images without their channel number."""
    found: list[Path] = []
    while (path := image.with_name(f"{stem_of(image)}_{len(found):04d}{suffix_of(image)}")).exists():
        found.append(path)
    return found


@register_layout("nnunet", recognise=is_nnunet, lists_paths=True)
def read_nnunet(path: Path, files_root: str | None = None) -> Dataset:
    """Read nnU-Net v2's raw layout: its ``dataset`` table, or the files of ``imagesTr`` and ``labelsTr``.

    A case consists of ``imagesTr/<id>_0000.<ext>`` to the last channel and ``labelsTr/<id>.<ext>``; if one of them exists,
    the others are expected. Natural images hold all channels in ``<id>_0000.<ext>`` if there is no other number.
    ``imagesTs`` is not read, and neither are lists such as ``training``. With ``"instances": true``, label maps are read as
    instance maps.

    Args:
        path: The dataset's folder, or its ``dataset.json``.
        files_root: Another folder that paths may point into.

    Returns:
        The dataset.

    Raises:
        DataError: The ``dataset.json`` is malformed, or a path leaves the folder and `files_root`.
    """
    root, description, values = _described(path)
    where = str(description)
    if "dataset" in values:
        cases = _listed_cases(root, values["dataset"], f"{where}: dataset", files_root)
    else:
        cases = _scanned_cases(root, values.get("file_ending"), len(channel_names(values, where)), where)
    return _dataset(root, where, values, cases)


def _listed_cases(root: Path, entries: Any, where: str, files_root: str | None) -> list[Case]:
    if not isinstance(entries, dict):
        raise DataError(f"{where}: expected an object from case ids to images and label. Correct it.")
    cases = []
    for case_id, entry in entries.items():
        place = f"{where}: {case_id}"
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or not entry["images"]:
            raise DataError(f'{place}: expected {{"images": [paths], "label": path}}. Correct it.')
        images = tuple(path_inside(root, name, f"{place}: images", files_root) for name in entry["images"])
        label = entry.get("label")
        cases.append(
            Case(case_id, images, path_inside(root, label, f"{place}: label", files_root) if label else None)
        )
    return cases


def _scanned_cases(root: Path, ending: Any, channels: int, where: str) -> list[Case]:
    """Return the cases of ``imagesTr/<id>_0000.<ext>``, ... and ``labelsTr/<id>.<ext>``.

    Missing partners are kept, so that `require_files` can list them.
    """
    if not isinstance(ending, str):
        raise DataError(
            f'{where}: file_ending: found {ending!r}, expected a suffix such as ".nii.gz". Add it.'
        )
    ending = ending if ending.startswith(".") else f".{ending}"
    files = visible_files(root / "imagesTr")
    stems = [file.name.removesuffix(ending) for file in files if file.name.endswith(ending)]
    numbers = [match for stem in stems if (match := CHANNEL_FILE.fullmatch(stem))]
    ids = {match["id"] for match in numbers}
    if not ids:
        _check_ending(files, ending, where)
    if ending.lower() in NATURAL_IMAGES and all(match["channel"] == "0000" for match in numbers):
        channels = 1  # files: each holds all colours
    labels = {
        f.name.removesuffix(ending) for f in visible_files(root / "labelsTr") if f.name.endswith(ending)
    }
    return [
        Case(
            case_id,
            tuple(root / "imagesTr" / f"{case_id}_{channel:04d}{ending}" for channel in range(channels)),
            root / "labelsTr" / f"{case_id}{ending}",
        )
        for case_id in sorted(ids | labels)
    ]


def _check_ending(files: Sequence[Path], ending: str, where: str) -> None:
    """Raise if there are images with another ending than the ``dataset.json`` states."""
    numbered = [file.name for file in files if CHANNEL_FILE.fullmatch(stem_of(file))]
    others = {name[len(stem_of(name)) :] for name in numbered} - {ending, ""}
    if others:
        raise DataError(
            f"{where}: file_ending: found {ending!r}, expected {' or '.join(sorted(others))} like the files in imagesTr. Correct it."
        )


def _description(path: Path) -> Path:
    return path if path.suffix == ".json" else path / "dataset.json"


def _described(path: Path) -> tuple[Path, Path, dict[str, Any]]:
    description = path / "dataset.json" if path.is_dir() else path
    return description.parent, description, read_object(description)


def _dataset(root: Path, where: str, values: dict[str, Any], cases: Sequence[Case]) -> Dataset:
    name = values.get("name")
    stated, labelled = values.get("numTraining"), sum(case.label is not None for case in cases)
    if isinstance(stated, int) and stated not in training_counts(values, labelled):
        warn_once(
            f"{where}: numTraining: found {stated}, expected {labelled}, the number of cases with a label map. These are used; "
            "correct the number, or add the missing files."
        )
    labels = (
        parse_labels(values["labels"], f"{where}: labels", values.get("regions_class_order"))
        if "labels" in values
        else None
    )
    chosen = name if isinstance(name, str) and name else folder_name(root)
    dataset = Dataset(chosen, root, tuple(cases), channel_names(values, where), labels)
    return dataset.with_instance_maps(f"{where}: instances") if _holds_instances(values, where) else dataset


def _holds_instances(values: Mapping[str, Any], where: str) -> bool:
    """Return whether the key ``instances`` states that label maps are instance maps."""
    stated = values.get("instances", False)
    if not isinstance(stated, bool):
        raise DataError(
            f"{where}: instances: found {stated!r}, expected true if the label maps hold one number per instance. Correct it."
        )
    return stated


def training_counts(values: Mapping[str, Any], labelled: int) -> tuple[int, ...]:
    """Return the numbers that ``numTraining`` may state: of all cases with a label map, or of those in ``training``.

    Args:
        values: Content of the ``dataset.json``.
        labelled: Number of cases with a label map.

    Returns:
        One number, or two if there is a list ``validation``.
    """
    training, validation = values.get("training"), values.get("validation")
    if validation and isinstance(training, list) and "file_ending" not in values:
        return labelled, len(training)
    return (labelled,)


def _list_of(values: dict[str, Any], key: str, where: str) -> list[Any]:
    found = values.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(f"{where}: {key}: found a {type(found).__name__}, expected a list. Correct it.")
    return found


def channel_names(values: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return the channel names in the order of their numbers; ``modality`` is the older key."""
    key = "channel_names" if "channel_names" in values else "modality"
    table = values.get(key)
    if isinstance(table, dict) and set(map(str, table.values())) == {str(i) for i in range(len(table))}:
        table = {str(number): name for name, number in table.items()}  # inverted, as some scripts write it
    if not isinstance(table, dict) or set(table) != {str(i) for i in range(len(table))} or not table:
        raise DataError(
            f'{where}: {key}: found {table!r}, expected names numbered from 0, such as {{"0": "CT"}}. Correct it.'
        )
    return tuple(str(table[str(i)]) for i in range(len(table)))


def parse_labels(table: Any, where: str, order: Any = None) -> Labels:
    """Return the labels of ``{"liver": 1}`` or of the Decathlon's form ``{"1": "liver"}``.

    With nnU-Net's regions, ``{"whole": [1, 2], "core": 2}``, every entry except the background is a region. Labels
    without a name of their own are called ``label_1`` and so on. The entry ``ignore`` is the value of voxels that are
    not annotated.

    Args:
        table: The value of ``labels`` in the file.
        where: File and field, for messages.
        order: The value of ``regions_class_order``: the output value of each region.

    Returns:
        The labels, with regions and the ignore value if the table has them.

    Raises:
        DataError: Values are not whole numbers, names or values are duplicated, or the order does not match the regions.

    Examples:
        >>> parse_labels({"0": "background", "1": "liver"}, "dataset.json").names
        ('background', 'liver')
    """
    if not isinstance(table, dict) or not table:
        raise DataError(f'{where}: found {table!r}, expected {{"background": 0, ...}}. Correct it.')
    if all(key.isdecimal() for key in table) and all(isinstance(name, str) for name in table.values()):
        table = _inverted(table, where)
    if len({name.strip() for name in table}) < len(table):
        raise DataError(
            f"{where}: found names that differ only by spaces, expected unique names. Rename one of them."
        )
    entries = {name.strip(): _whole_numbers(value, f"{where}: {name}") for name, value in table.items()}
    ignore = entries.pop("ignore", None)
    try:
        if all(len(values) == 1 for values in entries.values()):
            labels = Labels.from_names({name: values[0] for name, values in entries.items()})
        else:
            labels = _with_regions(entries, where, order)
        return labels if ignore is None else replace(labels, ignore=_only(ignore, f"{where}: ignore"))
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from None


def _with_regions(entries: dict[str, tuple[int, ...]], where: str, order: Any) -> Labels:
    """Return labels with nnU-Net's regions: all entries except the background, in their order."""
    regions = {name: values for name, values in entries.items() if values != (0,)}
    names = {values[0]: name for name, values in regions.items() if len(values) == 1}
    values = sorted({value for group in regions.values() for value in group} - {0})
    background = next((name for name, values in entries.items() if values == (0,)), "background")
    labels = Labels.from_names(
        {background: 0} | {names.get(value, unnamed_label(value)): value for value in values}
    )
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(i) is int for i in order):
        raise DataError(
            f"{where}: found the regions {', '.join(regions)} and regions_class_order {order!r}, expected a list of "
            f"{len(regions)} output values. Add it next to labels."
        )
    return labels.with_regions(regions, dict(zip(regions, order, strict=True)))


def _whole_numbers(found: Any, where: str) -> tuple[int, ...]:
    """Return the value of a label, or the values of a region."""
    values = found if isinstance(found, list) and found else [found]
    numbers = [int(v) if isinstance(v, str) and re.fullmatch("[0-9]{1,10}", v) else v for v in values]
    if any(type(v) is not int or not 0 <= v <= LARGEST_VALUE for v in numbers):
        raise DataError(
            f"{where}: found {repr(found)[:60]}, expected a whole number from 0 to {LARGEST_VALUE}. Correct it."
        )
    return tuple(numbers)


def _only(values: tuple[int, ...], where: str) -> int:
    if len(values) != 1:
        raise DataError(f"{where}: found {list(values)}, expected one value, not several. Keep one of them.")
    return values[0]


def _inverted(table: dict[str, str], where: str) -> dict[str, str]:
    """Return the values, as text, by name."""
    names = list(table.values())
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{where}: found the name {doubled!r} for several values, expected unique names. Rename one of them."
        )
    return {name: value for value, name in table.items()}
