"""Labels: names, values in files, colours, and class indices.

Files hold *values* (any integers); networks know *classes* 0 … K−1 with background first. `Labels` is the
one table between them. A network may predict *regions* instead, unions of labels that may overlap, such as the whole
tumour and its core; and one value in files may say *ignore*: nobody looked at this voxel.
"""

from __future__ import annotations

import colorsys
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean

Colour = tuple[int, int, int]
IGNORED_COLOUR: Colour = (128, 128, 128)
_LARGEST_LOOKUP = 1 << 20
_LARGEST_VALUE = 2**31 - 1  # of the largest integer type that every format and tool holds


def _word(word: str) -> re.Pattern[str]:
    """A word within a name, such as ``left`` in ``left_lung``, ``lungLeft`` and ``LEFT LUNG``, but not in ``cleft``."""
    title, upper = word.capitalize(), word.upper()
    return re.compile(
        rf"(?<![a-z]){word}(?![a-z])|(?<=[a-z]){title}|(?<![A-Za-z])(?:{title}|{upper})(?![a-z])"
    )


def _in_case_of(found: str, word: str) -> str:
    """`word` in the letter case of `found`."""
    return word.upper() if found.isupper() else word.capitalize() if found[0].isupper() else word


def opposite_names(names: Sequence[str], word: str, opposite: str) -> tuple[tuple[str, str], ...]:
    """Pairs among `names` that differ only by two words, in lower case, such as ``upper`` and ``lower``."""
    pattern = _word(word)
    pairs = ((name, pattern.sub(lambda m: _in_case_of(m.group(), opposite), name)) for name in names)
    return tuple((one, other) for one, other in pairs if one != other and other in names)


@dataclass(frozen=True)
class Label:
    """One label: its name, its value in files, and its display colour (0 to 255 each)."""

    name: str
    value: int
    colour: Colour


@dataclass(frozen=True)
class Region:
    """A union of labels that one output of a network stands for.

    Attributes:
        name: may be that of a label, if it holds only this label.
        values: the labels' values in files, rising.
        written: the value that stands for it in an output label map, where later regions overwrite earlier ones.
        colour: for display.
    """

    name: str
    values: tuple[int, ...]
    output_value: int
    colour: Colour


@dataclass(frozen=True)
class Labels(Sequence[Label]):
    """The labels of a dataset in class order; class 0 is background with value 0.

    Attributes:
        items: one for each class.
        regions: what the network predicts, in the order in which it is written; nothing if it predicts the classes.
        ignore: the value in files that says "not annotated"; no class, but class index K in arrays; None without one.
    """

    items: tuple[Label, ...]
    regions: tuple[Region, ...] = ()
    ignore: int | None = None

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
        self._check_regions()
        if self.ignore is not None and (self.ignore in values or not 0 < self.ignore <= _LARGEST_VALUE):
            raise DataError(
                f"labels: ignore: found {self.ignore}, expected a value that no label has ({_listed(values)}) from 1 to "
                f"{_LARGEST_VALUE}. Choose another."
            )

    def _check_regions(self) -> None:
        names = [region.name for region in self.regions]
        for region in self.regions:
            where = f"regions: {region.name}"
            unknown = sorted({*region.values, region.output_value} - set(self.values[1:]))
            if unknown:
                raise DataError(
                    f"{where}: unknown value {_listed(unknown)}, expected values of labels but the background's: "
                    f"{_listed(self.values[1:])}. Correct it."
                )
            if not region.values or list(region.values) != sorted(set(region.values)):
                raise DataError(
                    f"{where}: found values {list(region.values)}, expected one or more, rising, each once. Correct it."
                )
            same = [label.value for label in self.items if label.name == region.name]
            if names.count(region.name) > 1 or (same and region.values != tuple(same)):
                raise DataError(
                    f"{where}: the name stands for something else, too, expected each name once. Rename one of them."
                )
            if not region.name.strip() or any(character in region.name for character in "\t\r\n"):
                raise DataError(f"regions: found the name {region.name!r}, expected one line. Rename it.")

    @classmethod
    def from_names(
        cls, names_to_values: Mapping[str, int], colours: Mapping[str, Colour] | None = None
    ) -> Labels:
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

    def with_regions(
        self, regions: Mapping[str, Sequence[int]], written: Mapping[str, int] | None = None
    ) -> Labels:
        """The same labels, with a network that predicts these regions; nothing makes it predict the labels again.

        Args:
            regions: name → values of the labels it is the union of. Written in this order, later ones over earlier
                ones, so the larger region comes first.
            written: name → the value that stands for the region in a label map. Unless given it is the smallest value
                of the region that no later region holds, or else its smallest: of ``whole: [1, 2, 3], core: [2, 3],
                enhancing: [3]`` it is 1, 2, 3.

        Raises:
            DataError: an unknown value, a name that stands for something else, too, or a region without values.
        """
        given, made = written or {}, []
        groups = {str(name): tuple(sorted(set(values))) for name, values in regions.items()}
        for index, (name, values) in enumerate(groups.items()):
            later = {value for group in list(groups.values())[index + 1 :] for value in group}
            own = [value for value in values if value not in later] or list(values)
            value = given.get(name, own[0] if own else 0)
            colour = next(
                (label.colour for label in self.items if label.value == value), distinct_colour(index + 1)
            )
            made.append(Region(name, values, value, colour))
        return replace(self, regions=tuple(made))

    @classmethod
    def from_values(cls, *arrays: NDArray[Any]) -> Labels:
        """Return labels for maps without names: one for every value that occurs, called ``label_1`` and so on."""
        values = sorted({int(value) for array in arrays for value in np.unique(array)} - {0})
        return cls.from_names({"background": 0} | {unnamed_label(value): value for value in values})

    @property
    def names(self) -> tuple[str, ...]:
        """Names in class order."""
        return tuple(label.name for label in self.items)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of labels and regions, each once."""
        return tuple(dict.fromkeys((*self.names, *(region.name for region in self.regions))))

    @property
    def values(self) -> tuple[int, ...]:
        """Values in class order."""
        return tuple(label.value for label in self.items)

    @property
    def foreground(self) -> tuple[Label, ...]:
        """All but the background."""
        return self.items[1:]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a network: its regions, or its classes with the background."""
        return len(self.regions) or len(self.items)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of a network's outputs in order: regions, or classes with the background first."""
        return tuple(region.name for region in self.regions) or self.names

    @property
    def evaluated(self) -> tuple[Region, ...]:
        """What predictions are measured by: the regions, or each foreground label as a region of its own."""
        return self.regions or tuple(
            Region(label.name, (label.value,), label.value, label.colour) for label in self.foreground
        )

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def value_of(self, name: str) -> int:
        """The value of the label called `name`."""
        for label in self.items:
            if label.name == name:
                return label.value
        raise DataError(
            f"unknown label {name!r}.{did_you_mean(name, self.names)} Known: {', '.join(self.names)}."
        )

    def left_right_pairs(self) -> tuple[tuple[str, str], ...]:
        """Names of labels or regions that differ only by left and right: ``("left_kidney", "right_kidney")``."""
        return opposite_names(self.all_names, "left", "right")

    def to_classes(self, values: NDArray[Any], where: str = "label map") -> NDArray[Any]:
        """Values in a file → class indices (uint8, or uint16 for more than 256 classes); K for the value of `ignore`.

        Raises:
            DataError: a value that the table does not hold, with its voxel count.
        """
        index = self._nearest_classes(values)
        unknown = self.to_values(index) != values
        if self.ignore is not None:
            ignored = values == self.ignore
            index[ignored] = len(self)
            unknown &= ~ignored
        if unknown.any():
            found, counts = np.unique(values[unknown], return_counts=True)
            listed = ", ".join(f"{v} ({c} voxels)" for v, c in zip(found[:5], counts[:5], strict=True))
            raise DataError(
                f"{where}: unknown label value: found {listed}, expected one of "
                f"{_listed(self.values)}. {self._advice(values, unknown)}"
            )
        return index

    def _advice(self, values: NDArray[Any], unknown: NDArray[np.bool_]) -> str:
        """What to do about unknown values; drawing programs store a mask of one object as 0 and 255."""
        usual = "add it to the dataset's labels, or mend the label map."
        if self.values != (0, 1) or not (values[unknown] == 255).all() or values[~unknown].any():
            return usual.capitalize()
        return f"If it is a mask of 0 and 255, set data.labels={{{self.names[1]}: 255}}; else {usual}"

    def _nearest_classes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Class indices, right wherever the table holds the value; a look-up, because volumes are large."""
        table = np.array(self.values)
        dtype = np.uint8 if len(table) + (self.ignore is not None) <= 256 else np.uint16
        if values.dtype.kind not in "iu" or table[-1] >= _LARGEST_LOOKUP:
            return np.clip(np.searchsorted(table, values), 0, len(table) - 1).astype(dtype)
        lookup = np.zeros(table[-1] + 1, dtype=dtype)
        lookup[table] = np.arange(len(table))
        top = min(int(table[-1]), int(np.iinfo(values.dtype).max))
        return np.asarray(lookup[np.clip(values, 0, top)])

    def to_values(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Class indices → values, in the smallest integer type that holds those of all labels (and ignore, if met)."""
        met = self.ignore is not None and bool(np.any(np.asarray(classes) == len(self)))
        table = np.array((*self.values, self.ignore) if met else self.values)
        dtype = np.uint8 if table.max() < 256 else np.uint16 if table.max() < 65536 else np.int32
        return np.take(table.astype(dtype), classes)

    def to_tsv(self) -> str:
        """As a table with the columns value, name, colour (``#rrggbb``).

        Where there are regions or an ignore label, a column ``kind`` says of each row ``label``, ``ignore`` or
        ``region 1 2 3``: the values that the region holds, while the row's value is the one it is written as.
        """
        rows = [(i.value, i.name, i.colour, "label") for i in self.items]
        rows += [
            (r.output_value, r.name, r.colour, f"region {' '.join(map(str, r.values))}") for r in self.regions
        ]
        if self.ignore is not None:
            rows.append((self.ignore, "ignore", IGNORED_COLOUR, "ignore"))
        more = bool(self.regions) or self.ignore is not None
        lines = ["value\tname\tcolour" + ("\tkind" if more else "")]
        lines += [
            f"{value}\t{name}\t#{red:02x}{green:02x}{blue:02x}" + (f"\t{kind}" if more else "")
            for value, name, (red, green, blue), kind in rows
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_tsv(cls, path: str | Path) -> Labels:
        """Read a table with the columns value (or index) and name, and perhaps colour (``#rrggbb``) and kind.

        See `to_tsv` for the kinds; an empty one is a label.

        Raises:
            DataError: the table cannot be read, or does not make sense.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read ({reason}). Give a table of labels.") from None
        try:
            rows = [
                _Row.from_row(row)
                for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
            ]
            labels = [row for row in rows if row.kind == "label"]
            for kind in ("label", "region"):
                names = [row.name for row in rows if row.kind == kind]
                if len(set(names)) < len(names):
                    raise ValueError(f"name {max(names, key=names.count)!r} stands twice")
            ignored = [row.value for row in rows if row.kind == "ignore"]
            if len(ignored) > 1:
                raise ValueError(f"found {len(ignored)} rows of kind ignore, expected one")
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(
                f"{path}: {error}: expected tab-separated columns value, name and perhaps colour (#rrggbb) and kind "
                "(label, ignore or region 1 2 3). Mend the header or the row."
            ) from None
        table = cls.from_names(
            {row.name: row.value for row in labels}, {row.name: row.colour for row in labels if row.colour}
        )
        regions = [row for row in rows if row.kind == "region"]
        found = table.with_regions(
            {row.name: row.holds for row in regions}, {row.name: row.value for row in regions}
        )
        coloured = tuple(
            replace(region, colour=row.colour or region.colour)
            for region, row in zip(found.regions, regions, strict=True)
        )
        return replace(found, regions=coloured, ignore=ignored[0] if ignored else None)


@dataclass(frozen=True)
class _Row:
    """One line of a table of labels."""

    value: int
    name: str
    colour: Colour | None
    kind: str
    holds: tuple[int, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> _Row:
        kind, *holds = (row.get("kind") or "label").split()
        if kind not in ("label", "ignore", "region") or (kind == "region") != bool(holds):
            raise ValueError(f"kind {row.get('kind')!r}")
        colour = _colour(row["colour"]) if row.get("colour") else None
        value = int(row.get("value") or row["index"])
        return cls(value, row["name"].strip(), colour, kind, tuple(map(int, holds)))


def unnamed_label(value: int) -> str:
    """Return the name of a label for which only the value is known: ``label_3`` for 3."""
    return f"label_{value}"


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
