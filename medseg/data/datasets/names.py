"""Names and paths in datasets: valid ids, persons that ids suggest, and paths that stay inside a folder."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.errors import DataError
from medseg.io.file_content import permission_denied
from medseg.storage.portable_names import portable_name

CHANNEL_FILE = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})", re.DOTALL)
"""Stem of an image file that holds one channel: ``<id>_0000``."""

LONGEST_ID = 128
_LONGEST_ID_BYTES = 200  # of the 255 that file systems allow; results add their own prefixes and suffixes

# What follows the number of a person in the name of a case: a visit, a time, a sequence, a side, or a letter.
_VISIT_WORDS = (
    r"frame|fr|slice|sl|visit|vis|ses|session|scan|time|timepoint|tp|day|week|month|year|run|rep|repeat|exam|study|phase|part|"
    r"baseline|base|bl|follow[_-]?up|follow|fu|pre|post|acq|echo|view|patch|tile|crop|roi"
)
_VISIT = (
    rf"(?:{_VISIT_WORDS})[_\-. ]?\d*|[vtmdwy]\d{{1,4}}|left|right|lh|rh|ed|es|sys|dia|systole|diastole|insp|exp|sa|la|"
    r"t1w?|t2w?|t1c|t1ce|t1gd|t1n|t2f|flair|dwi|adc|pd|swi|space|dixon|ct|mri?\d*|pet|cbct|ax|axial|cor|coronal|sag|sagittal|"
    r"art|arterial|ven|venous|portal|delayed|native|[a-z]"
)
# A visit, or the number of a person within a study.
_NUMBER = r"[sfrlpn]?\d{1,3}"
_CASE_OF_PERSON = re.compile(
    rf"(?P<person>(?:.*?[^0-9a-z])??[0-9a-z]*\d)"
    rf"(?:[_\-. ](?P<visit>(?:{_VISIT})(?:[_\-. ](?:{_VISIT}))*(?:[_\-. ]{_NUMBER})?)|[_\-. ](?P<number>{_NUMBER})|(?P<side>[a-hlr]))",
    re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r"(?P<word>[a-z]*)[_\-. ]?(?P<number>\d+)", re.IGNORECASE)
_PERSON = re.compile(
    r"p|pt|pat|patient|sub|subj|subject|person|id|case|mouse|rat|animal|donor|volunteer", re.IGNORECASE
)
_GROUP = re.compile(
    r"site|cent(?:er|re)|hosp(?:ital)?|clinic|scanner|vendor|study|dataset|ds|batch|set|group|cohort|fold|task|part|phase|"
    r"visit|ses(?:sion)?|day|week|month|year|run|rep|timepoint|tp",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:.*[^0-9])?(?:19|20)\d\d[_\-.](?:0[1-9]|1[0-2])[_\-.][0-3]\d")
_YEAR = re.compile(r"(?:19|20)\d\d")
_LONG_NUMBER = 5  # digits of a person's number, after which three digits count visits: BraTS-GLI-00008-001
_MOST_PER_PERSON = 0.5  # of all cases: a larger group of plain numbers is a data set, not a person


def is_valid_id(name: str) -> bool:
    """Return whether a name can be the id of a case, and so a file name on every system.

    Args:
        name: The name.

    Returns:
        True if it has at most 128 characters and 200 bytes, does not begin with a dot, dash or space, and is allowed as the name
        of a file on every system, see `medseg.storage.portable_names.portable_name`.

    >>> is_valid_id("Müller 2"), is_valid_id("患者甲"), is_valid_id("../a")
    (True, True, False)
    """
    return name != "" and sanitised_id(name) == name


def sanitised_id(name: str) -> str:
    """Return the name with everything that is not allowed in an id removed, or replaced by ``_``."""
    letters = portable_name(name.lstrip(".- "))[:LONGEST_ID]
    while len(letters.encode()) > _LONGEST_ID_BYTES:
        letters = letters[:-1]
    return letters.rstrip(". ") or "_"


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted; an empty list if there is no such folder.

    Hidden files are left out, because archives created on a Mac contain a ``._name`` for each file.
    """
    try:
        if not folder.is_dir():
            return []
        return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and not f.is_dir())
    except PermissionError:
        raise permission_denied(folder) from None


def path_inside(root: Path, name: Any, where: str, files_root: str | None = None) -> Path:
    """Return the path of `name` in a dataset's folder, which it must not leave.

    Links in the folder are followed: users keep large files elsewhere by links, and the archive extractor creates none.

    Args:
        root: Folder of the dataset.
        name: Path as written in a table or a ``dataset.json``, relative to `root` or absolute.
        where: File and field, for messages.
        files_root: Another folder that the path may be in, because the user named it.

    Returns:
        The path; it may not exist.

    Raises:
        DataError: The name is not text, or the path is in neither folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: found {name!r}, expected a path. Correct it.")
    relative = os.path.normpath(name.replace("\\", "/"))
    if relative.startswith(("$", "~", "%")) and not (root / relative).exists():
        raise DataError(
            f"{where}: found {name!r}, expected a path without variables, which are not expanded. Write the path itself, and name "
            "the folder that holds all files with --files-root (data.files_root in a config)."
        )
    drive = re.match(r"[A-Za-z]:", relative) and not Path(relative).is_absolute()  # of another system
    if not (drive or Path(relative).is_absolute() or relative.split("/")[0] == ".."):
        return root / relative
    path = Path(os.path.normpath(root.absolute() / relative))
    folders = (root, *([Path(files_root)] if files_root else []))
    if not drive and any(path.is_relative_to(os.path.normpath(folder.absolute())) for folder in folders):
        return path
    raise DataError(
        f"{where}: found {name!r}, which is outside of {files_root or root}, expected a path inside. Give one relative to it, or name the folder that holds all "
        "files with --files-root (data.files_root in a config)."
    )


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to the folder of its dataset if it is inside, with ``/``."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def folder_name(path: Path) -> str:
    """Return the name of a folder, or of the folder that holds a file; also for ``.``."""
    return (path if path.is_dir() else path.parent).resolve().name or "dataset"


def persons_by_name(ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return persons who seem to have several cases.

    A name counts as that of a person if it ends with a number and is followed by visits, frames, sequences, sides, a single
    letter, or a number of at most two digits that is no longer than that of the person. Numbered cases of one study, such as
    ``liver_1`` and ``site1_001``, are not grouped, nor are dates, and cases of a site, a study or another group.

    Args:
        ids: Ids of cases.

    Returns:
        Ids by person, only of persons with at least two cases; empty if the names follow another pattern.

    >>> persons_by_name(["p01_a", "p01_b", "p02_a", "p03_a"])
    {'p01': ('p01_a', 'p01_b')}
    >>> persons_by_name(["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient003_frame01"])
    {'patient001': ('patient001_frame01', 'patient001_frame12')}
    >>> persons_by_name(["liver_1", "liver_2", "liver_10"])
    {}
    """
    names = sorted(ids)
    groups: dict[str, list[str]] = defaultdict(list)
    unsure: set[str] = set()
    for name in names:
        match = _CASE_OF_PERSON.fullmatch(name)
        if match and _names_a_person(name, match):
            groups[match["person"]].append(name)
            if match["number"]:
                unsure.add(match["person"])
    several = {person: tuple(cases) for person, cases in groups.items() if len(cases) > 1}
    most = max(2, _MOST_PER_PERSON * len(names))
    if any(len(cases) > most for person, cases in several.items() if person in unsure):
        return {person: cases for person, cases in several.items() if person not in unsure}
    return several


def subjects_by_name(ids: Iterable[str]) -> dict[str, str]:
    """Return the subject of each case by the names of all cases, as far as names suggest one.

    Args:
        ids: Ids of cases.

    Returns:
        Subjects by id; a case without others of its person is a subject of its own.

    >>> subjects_by_name(["p1_a", "p1_b", "p2_a"])
    {'p1_a': 'p1', 'p1_b': 'p1', 'p2_a': 'p2_a'}
    """
    names = list(ids)
    inferred = {case: person for person, cases in persons_by_name(names).items() for case in cases}
    return {name: name for name in names} | inferred


def _names_a_person(name: str, match: re.Match[str]) -> bool:
    """Return whether what precedes a visit is the number of a person, and not of a site, a study or a date."""
    if _DATE.fullmatch(name):
        return False
    last = list(_LAST_NUMBER.finditer(match["person"]))[-1]
    word, number, visit = last["word"], last["number"], match["number"]
    if _GROUP.fullmatch(word):  # site1_a may be a person; study_1_frame01 is a frame
        return len(match["visit"] or "") > 1
    if visit is None or _PERSON.fullmatch(word):
        return True
    digits = len(visit.lstrip("sfrlpnSFRLPN"))
    if _YEAR.fullmatch(number):
        return False
    return digits <= len(number) if digits < 3 else len(number) >= _LONG_NUMBER
