"""Labels: names, values in files, colours, and class indices.

Files hold *values* (any integers); networks know *classes* 0 … K−1 with background first. `Labels` is the
one table between them.
"""

from __future__ import annotations

import colorsys
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, nearest

Colour = tuple[int, int, int]
_LARGEST_LOOKUP = 1 << 20
_LARGEST_VALUE = 2**31 - 1  # of the largest integer type that every format and tool holds


_LEFT = re.compile(r"(?<![a-z])left(?![a-z])|(?<=[a-z])Left|(?<![A-Za-z])(?:Left|LEFT)(?![a-z])")


def _right_like(found: re.Match[str]) -> str:
    """``right`` in the letter case of ``left``."""
    word = found.group()
    return "RIGHT" if word.isupper() else "Right" if word[0].isupper() else "right"


@dataclass(frozen=True)
class Label:
    """One label: its name, its value in files, and its display colour (0 to 255 each)."""

    name: str
    value: int
    colour: Colour


@dataclass(frozen=True)
class Labels(Sequence[Label]):
    """The labels of a dataset in class order; class 0 is background with value 0."""

    items: tuple[Label, ...]

    def __post_init__(self) -> None:
        values, names = self.values, self.names
        if len(set(values)) != len(values) or len(set(names)) != len(names):
            raise DataError(
                f"labels: found {dict(zip(names, values, strict=True))}, expected each once. Mend the table."
            )
        if not values or values[0] != 0 or list(values) != sorted(values) or values[-1] > _LARGEST_VALUE:
            raise DataError(
                f"labels: found values {list(values)}, expected background = 0 first, then rising to at most "
                f"{_LARGEST_VALUE}. Mend the table."
            )
        if any(not name.strip() or any(character in name for character in "\t\r\n") for name in names):
            raise DataError(f"labels: found names {list(names)}, expected each on one line. Mend the table.")

    @classmethod
    def of(cls, names_to_values: Mapping[str, int], colours: Mapping[str, Colour] | None = None) -> Labels:
        """From ``{"background": 0, "liver": 1, …}`` in any order; background is added when missing."""
        table = dict(names_to_values)
        if 0 not in table.values() and "background" not in table:
            table = {"background": 0, **table}
        ordered = sorted(table.items(), key=lambda item: item[1])
        chosen = colours or {}
        return cls(
            tuple(
                Label(str(name), int(value), chosen.get(name, distinct_colour(index)))
                for index, (name, value) in enumerate(ordered)
            )
        )

    @classmethod
    def of_values(cls, *arrays: NDArray[Any]) -> Labels:
        """Labels for maps that come without names: every value met, called ``label 1`` and so on."""
        values = sorted({int(value) for array in arrays for value in np.unique(array)} - {0})
        return cls.of({"background": 0} | {f"label {value}": value for value in values})

    @property
    def names(self) -> tuple[str, ...]:
        """Names in class order."""
        return tuple(label.name for label in self.items)

    @property
    def values(self) -> tuple[int, ...]:
        """Values in class order."""
        return tuple(label.value for label in self.items)

    @property
    def foreground(self) -> tuple[Label, ...]:
        """All but the background."""
        return self.items[1:]

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def value_of(self, name: str) -> int:
        """The value of the label called `name`."""
        for label in self.items:
            if label.name == name:
                return label.value
        raise DataError(f"unknown label {name!r}.{nearest(name, self.names)} Known: {', '.join(self.names)}.")

    def sided_pairs(self) -> tuple[tuple[str, str], ...]:
        """Names that differ only by left and right, such as ``("left_kidney", "right_kidney")``."""
        names = set(self.names)
        pairs = ((name, _LEFT.sub(_right_like, name)) for name in self.names)
        return tuple((left, right) for left, right in pairs if left != right and right in names)

    def to_classes(self, values: NDArray[Any], where: str = "label map") -> NDArray[Any]:
        """Values in a file → class indices (uint8, or uint16 for more than 256 classes).

        Raises:
            DataError: a value that the table does not hold, with its voxel count.
        """
        index = self._nearest_classes(values)
        unknown = self.to_values(index) != values
        if unknown.any():
            found, counts = np.unique(values[unknown], return_counts=True)
            listed = ", ".join(f"{v} ({c} voxels)" for v, c in zip(found[:5], counts[:5], strict=True))
            raise DataError(
                f"{where}: unknown label value: found {listed}, expected one of "
                f"{_listed(self.values)}. Add it to the dataset's labels, or mend the label map."
            )
        return index

    def _nearest_classes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Class indices, right wherever the table holds the value; a look-up, because volumes are large."""
        table = np.array(self.values)
        dtype = np.uint8 if len(table) <= 256 else np.uint16
        if values.dtype.kind not in "iu" or table[-1] >= _LARGEST_LOOKUP:
            return np.clip(np.searchsorted(table, values), 0, len(table) - 1).astype(dtype)
        lookup = np.zeros(table[-1] + 1, dtype=dtype)
        lookup[table] = np.arange(len(table))
        top = min(int(table[-1]), int(np.iinfo(values.dtype).max))
        return np.asarray(lookup[np.clip(values, 0, top)])

    def to_values(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Class indices → values, in the smallest integer type that holds them."""
        table = np.array(self.values)
        dtype = np.uint8 if table.max() < 256 else np.uint16 if table.max() < 65536 else np.int32
        return np.take(table.astype(dtype), classes)

    def to_tsv(self) -> str:
        """As a table with the columns value, name, colour (``#rrggbb``)."""
        lines = ["value\tname\tcolour"]
        lines += [
            f"{i.value}\t{i.name}\t#{i.colour[0]:02x}{i.colour[1]:02x}{i.colour[2]:02x}" for i in self.items
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_tsv(cls, path: str | Path) -> Labels:
        """Read a table with the columns value (or index) and name, and perhaps colour (``#rrggbb``)."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read ({reason}). Give a table of labels.") from None
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
        try:
            values = [int(row.get("value") or row["index"]) for row in rows]
            names = [row["name"].strip() for row in rows]
            colours = {row["name"].strip(): _colour(row["colour"]) for row in rows if row.get("colour")}
            if len(set(names)) < len(names):
                raise ValueError(f"name {max(names, key=names.count)!r} stands twice")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: {error}: expected tab-separated columns value, name and perhaps colour (#rrggbb). "
                "Mend the header or the row."
            ) from None
        return cls.of(dict(zip(names, values, strict=True)), colours)


def distinct_colour(index: int) -> Colour:
    """A colour far from those of neighbouring indices; index 0 is black (golden-angle hues)."""
    if index == 0:
        return (0, 0, 0)
    hue = (index * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.2 * (index % 2), 0.95 - 0.15 * (index % 3))
    return (round(red * 255), round(green * 255), round(blue * 255))


def _colour(text: str) -> Colour:
    digits = text.strip().lstrip("#")
    if len(digits) != 6:
        raise ValueError(f"colour {text!r}")
    return (int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16))


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown + (f", ... ({len(values)} values)" if len(values) > 12 else "")
