"""Codes of SNOMED CT for names of labels, as DICOM segmentations need them.

``coded_names.tsv`` lists the codes. Most of them are those of the context groups of DICOM PS3.16, such as CID 7151
"Segmentation Property Type" and CID 7159 "Lesion Segmentation Type"; those of ribs and single muscles are from SNOMED CT itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from medseg.errors import warn_once
from medseg.runtime.formatting import listed
from medseg.storage.tsv import read_tsv

_LONGEST = 64  # letters of a code's meaning
_SCHEME = "99MEDSEG"  # private schemes begin with 99


class Code(NamedTuple):
    """A coded concept.

    Attributes:
        value: The code.
        scheme: Its coding scheme: ``SCT`` for SNOMED CT.
        meaning: The concept in words.
    """

    value: str
    scheme: str
    meaning: str


_CATEGORIES = {
    "anatomy": Code("91723000", "SCT", "Anatomical Structure"),
    "abnormality": Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    "tissue": Code("85756007", "SCT", "Tissue"),
    "object": Code("260787004", "SCT", "Physical object"),
}
_SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


@dataclass(frozen=True)
class CodedName:
    """What a label stands for.

    Attributes:
        category: Anatomical structure, abnormality, tissue or object.
        type: The structure or abnormality.
        side: Left or right; None without a side, or if the type itself has one.
        region: The structure that an abnormality is in; None if the name does not state it.
        known: Whether the name was found in the table; otherwise `type` is a private code with the name as its meaning.
    """

    category: Code
    type: Code
    side: Code | None = None
    region: Code | None = None
    known: bool = True


def coded_name(name: str) -> CodedName:
    """Return the codes of a label.

    Case, separators and the order of words do not matter, and ``left`` and ``right`` may be part of the name.

    Args:
        name: Name of a label.

    Returns:
        Its codes; a private code if the table does not list the name.

    Examples:
        >>> coded = coded_name("kidney_left")
        >>> coded.type.meaning, coded.side.meaning
        ('Kidney', 'Left')
        >>> coded = coded_name("Liver tumour")
        >>> coded.type.meaning, coded.region.meaning
        ('Neoplasm', 'Liver')
        >>> coded_name("device 7").type[1:]
        ('99MEDSEG', 'device 7')
    """
    words = _words(name)
    sides = [word for word in words if word in _SIDES]
    side = _SIDES[sides[0]] if len(sides) == 1 else None
    plain = tuple(word for word in words if word not in _SIDES)
    if (found := _table().get(words)) and side:
        return CodedName(*found)
    if len(sides) < 2:
        if found := _table().get(plain):
            return CodedName(*found, side)
        if abnormal := _abnormality(plain):
            category, kind, region = abnormal
            return CodedName(category, kind, side, region)
    private = Code(hashlib.sha256(name.encode()).hexdigest()[:16], _SCHEME, name[:_LONGEST])
    return CodedName(_CATEGORIES["anatomy"], private, known=False)


def report_unknown(names: Sequence[str]) -> None:
    """Report label names without a code of SNOMED CT once.

    Args:
        names: Names of the labels that are written.
    """
    unknown = [name for name in names if not coded_name(name).known]
    if unknown:
        warn_once(
            f"labels: {listed(unknown, 5)}: found no code of SNOMED CT, expected names of common anatomy such as kidney_left; they are written as "
            "free text under private codes. Rename the labels if other programs must recognise them."
        )


def _abnormality(words: tuple[str, ...]) -> tuple[Code, Code, Code] | None:
    """Return the codes of an abnormality in a structure, such as ``liver tumour``."""
    for at in range(1, len(words)):
        rest = frozenset(words)
        for part in (frozenset(words[at:]), frozenset(words[:at])):
            kind, region = _table().get(tuple(sorted(part))), _table().get(tuple(sorted(rest - part)))
            if (
                kind
                and region
                and kind[0] == _CATEGORIES["abnormality"]
                and region[0] == _CATEGORIES["anatomy"]
            ):
                return kind[0], kind[1], region[1]
    return None


def _words(name: str) -> tuple[str, ...]:
    """Return the sorted words of a name in lower case; camel case is split, and ``of``, ``the`` and ``in`` are left out."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_]+", spaced.lower())
    return tuple(sorted(word for word in words if word not in ("of", "the", "in")))


@cache
def _table() -> dict[tuple[str, ...], tuple[Code, Code]]:
    """Return category and type by the words of each name."""
    table = read_tsv(Path(__file__).with_suffix(".tsv"))
    found = {}
    for row in table.rows:
        cells = row.cells
        entry = _CATEGORIES[cells["category"]], Code(cells["code"], "SCT", cells["meaning"])
        for name in cells["names"].split("|"):
            found[_words(name)] = entry
    return found
