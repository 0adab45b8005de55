"""BIDS datasets: raw images by subject and session, label maps in derivatives.

The layout is that of the Brain Imaging Data Structure (Gorgolewski et al., Sci Data 2016,
doi:10.1038/sdata.2016.44), with label maps named like its derivatives: ``*_dseg.nii.gz``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.layout_registry import register_layout
from medseg.data.datasets.names import folder_name
from medseg.errors import DataError
from medseg.io.files import NIFTI, stem_of, suffix_of
from medseg.labels.label_table import Labels

_NAME = re.compile(r"(?P<case>(?P<subject>sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?)_(?P<rest>.+)")
_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat")
_TABLE_FIX = "Keep one, or list the files in a table of cases"


def is_bids(path: Path) -> bool:
    """Return whether the folder has subject folders ``sub-*``."""
    return any(path.glob("sub-*/"))


@register_layout("bids", recognise=is_bids)
def read_bids(path: Path) -> Dataset:
    """Read one case per subject, or per session of a subject.

    The name of a channel is the part of the file name after subject and session, such as ``T1w`` or ``acq-ce_T1w``. The
    channels are those that all cases have, sorted by name. Label maps are ``*_dseg`` files in ``derivatives/PIPELINE``;
    their table ``*dseg.tsv`` (index, name) names the labels. Cases without a label map are kept.

    Args:
        path: The dataset's folder, or a file in it.

    Returns:
        The dataset.

    Raises:
        DataError: No channel is common to all cases, a case has several label maps, a label map has no image, or label
            tables differ.
    """
    root = path if path.is_dir() else path.parent
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    subjects: dict[str, str] = {}
    for file, match in _named(root, _FOLDERS):
        if match["rest"] in images[match["case"]]:
            first = images[match["case"]][match["rest"]]
            raise DataError(f"{root}: {first.name} and {file.name} are the same channel. {_TABLE_FIX}.")
        images[match["case"]][match["rest"]] = file
        subjects[match["case"]] = match["subject"]
    channels = _common_channels(root, images)
    labels = _label_maps(root, set(images))
    cases = tuple(
        Case(case_id, tuple(files[name] for name in channels), labels.get(case_id), subjects[case_id])
        for case_id, files in images.items()
    )
    return Dataset(folder_name(root), root, cases, channels, _label_table(root))


def _named(root: Path, patterns: tuple[str, ...]) -> list[tuple[Path, re.Match[str]]]:
    """Return the NIfTI files in the matching folders, each with the parts of its name."""
    found = []
    for pattern in patterns:
        for file in sorted(root.glob(f"{pattern}/sub-*")):
            match = _NAME.fullmatch(stem_of(file))
            if match and suffix_of(file) in NIFTI:
                found.append((file, match))
    return found


def _common_channels(root: Path, images: dict[str, dict[str, Path]]) -> tuple[str, ...]:
    common = set.intersection(*(set(files) for files in images.values())) if images else set()
    if images and not common:
        seen = sorted({name for files in images.values() for name in files})
        raise DataError(
            f"{root}: no channel is common to all {len(images)} cases: found {', '.join(seen[:12])}. "
            "Add the missing images, or list the cases to use in a table."
        )
    return tuple(sorted(common))


def _label_maps(root: Path, cases: set[str]) -> dict[str, Path]:
    labels: dict[str, Path] = {}
    for file, match in _named(root, tuple(f"derivatives/*/{pattern}" for pattern in _FOLDERS)):
        if match["rest"].split("_")[-1] != "dseg":
            continue
        if match["case"] in labels:
            raise DataError(
                f"{root}: case {match['case']} has several label maps: {labels[match['case']]} and {file}. "
                f"{_TABLE_FIX}."
            )
        if match["case"] not in cases:
            raise DataError(
                f"{file}: found no image of {match['case']} in {root}. Add it, or remove the map."
            )
        labels[match["case"]] = file
    return labels


def _label_table(root: Path) -> Labels | None:
    """Return the label table that all ``*dseg.tsv`` files in derivatives agree on."""
    chosen: tuple[Path, Labels] | None = None
    for file in sorted((root / "derivatives").rglob("*dseg.tsv")):
        labels = Labels.from_tsv(file)
        if chosen and (labels.names, labels.values) != (chosen[1].names, chosen[1].values):
            raise DataError(
                f"{chosen[0]} and {file} name labels differently, expected equal tables. Correct one of them."
            )
        chosen = chosen or (file, labels)
    return chosen[1] if chosen else None
