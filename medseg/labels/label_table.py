"""Label tables: names, values in files, colours and class indices of the labels of a dataset.

Files hold *values*, which can be any integers from 0. Networks predict *classes* 0 … K−1, with the background first.
`Labels` translates between the two. A network can also predict *regions*, which are unions of labels that may overlap,
such as a whole tumour and its core. One value in files can mean *ignore*: the voxel was not annotated.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean
from medseg.labels.colours import IGNORED_COLOUR, Colour, distinct_colour
from medseg.labels.label_files import LARGEST_VALUE, LabelRow, label_rows_to_tsv, read_label_rows
from medseg.labels.left_right import opposite_names

_LARGEST_LOOKUP = 1 << 20
_MOST_NAMES = 12  # in a message
_NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that a table of lines cannot hold


@dataclass(frozen=True)
class Label:
    """One label.

    Attributes:
        name: Name of the structure.
        value: Value in label maps.
        colour: Display colour.
    """

    name: str
    value: int
    colour: Colour


@dataclass(frozen=True)
class Region:
    """A union of labels that one output of a network predicts.

    Attributes:
        name: Name of the region. It may be the name of a label if the region consists of this label only.
        values: Values of its labels, ascending.
        output_value: Value that represents the region in predicted label maps, where later regions overwrite earlier
            ones.
        colour: Display colour.
    """

    name: str
    values: tuple[int, ...]
    output_value: int
    colour: Colour


@dataclass(frozen=True)
class Labels(Sequence[Label]):
    """The labels of a dataset in class order, with the background first.

    Attributes:
        items: The labels; the class index of a label is its position.
        regions: What the network predicts instead of the labels; empty if it predicts the labels.
        ignore: Value of voxels that were not annotated, or None. It is not a class, but has index K in arrays of class
            indices.

    Examples:
        >>> labels = Labels.from_names({"liver": 5, "spleen": 2})
        >>> labels.names
        ('background', 'spleen', 'liver')
        >>> labels.to_classes(np.array([0, 5, 2]))
        array([0, 2, 1], dtype=uint8)
        >>> labels.to_values(np.array([0, 2, 1]))
        array([0, 5, 2], dtype=uint8)
    """

    items: tuple[Label, ...]
    regions: tuple[Region, ...] = ()
    ignore: int | None = None

    def __post_init__(self) -> None:
        values, names = self.values, self.names
        if len(set(values)) != len(values) or len(set(names)) != len(names):
            doubled = [
                item for item in self.items if names.count(item.name) > 1 or values.count(item.value) > 1
            ]
            shown = ", ".join(f"{item.name!r}: {item.value}" for item in doubled[:_MOST_NAMES])
            raise DataError(f"labels: found {{{shown}}}, expected unique names and values. Fix the table.")
        if not values or values[0] != 0 or list(values) != sorted(values) or values[-1] > LARGEST_VALUE:
            raise DataError(
                f"labels: found values [{_listed(values)}], expected background = 0 first, then ascending values up to "
                f"{LARGEST_VALUE}. Fix the table."
            )
        if unusable := [name for name in names if not _is_one_line(name)]:
            raise DataError(
                f"labels: found the names {unusable}, expected names that are not empty and have no tab, line break or control character. "
                "Rename these labels."
            )
        self._check_regions()
        if self.ignore is not None and (self.ignore in values or not 0 < self.ignore <= LARGEST_VALUE):
            raise DataError(
                f"labels: ignore: found {self.ignore}, expected a value that no label has ({_listed(values)}), "
                f"from 1 to {LARGEST_VALUE}. Choose another value."
            )

    def _check_regions(self) -> None:
        names = [region.name for region in self.regions]
        for region in self.regions:
            where = f"regions: {region.name}"
            unknown = sorted({*region.values, region.output_value} - set(self.values[1:]))
            if unknown:
                raise DataError(
                    f"{where}: found the unknown value {_listed(unknown)}, expected values of labels other than the background "
                    f"({_listed(self.values[1:]) or 'there is none'}). Correct it."
                )
            if not region.values or list(region.values) != sorted(set(region.values)):
                raise DataError(
                    f"{where}: found values {list(region.values)}, expected one or more unique values in ascending "
                    "order. Correct it."
                )
            same = [label.value for label in self.items if label.name == region.name]
            if names.count(region.name) > 1 or (same and region.values != tuple(same)):
                raise DataError(
                    f"{where}: another label or region has this name, expected unique names. Rename one of them."
                )
            if not _is_one_line(region.name):
                raise DataError(
                    f"regions: found the name {region.name!r}, expected one that is not empty and has no tab, line break or control character. "
                    "Rename it."
                )

    @classmethod
    def from_names(
        cls, names_to_values: Mapping[str, int], colours: Mapping[str, Colour] | None = None
    ) -> Labels:
        """Create labels from names and values.

        Args:
            names_to_values: Values by name, such as ``{"background": 0, "liver": 1}``, in any order. The background is
                added if it is missing.
            colours: Colours by name; distinct colours are chosen for other names.

        Returns:
            The labels in ascending order of values.
        """
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
    def from_values(cls, *arrays: NDArray[Any]) -> Labels:
        """Create labels for maps without names: one for each value that occurs, called ``label_1`` and so on.

        Args:
            *arrays: Label maps of any shape.

        Returns:
            The labels in ascending order of values.
        """
        values = sorted({int(value) for array in arrays for value in np.unique(array)} - {0})
        return cls.from_names({"background": 0} | {unnamed_label(value): value for value in values})

    @classmethod
    def from_tsv(cls, path: str | Path) -> Labels:
        """Read labels from a table with the columns value (or index) and name, and optionally colour and kind.

        Args:
            path: File as `to_tsv` writes it; a row with an empty kind is a label.

        Returns:
            The labels, with regions and ignore value if the table has them.

        Raises:
            DataError: The file cannot be read or is not a valid table.
        """
        rows = read_label_rows(Path(path))
        try:
            return cls._from_rows(rows)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    @classmethod
    def _from_rows(cls, rows: Sequence[LabelRow]) -> Labels:
        labels, regions, ignored = (
            [row for row in rows if row.kind == k] for k in ("label", "region", "ignore")
        )
        table = cls.from_names(
            {row.name: row.value for row in labels}, {row.name: row.colour for row in labels if row.colour}
        )
        found = table.with_regions(
            {row.name: row.members for row in regions}, {row.name: row.value for row in regions}
        )
        coloured = tuple(
            replace(region, colour=row.colour or region.colour)
            for region, row in zip(found.regions, regions, strict=True)
        )
        return replace(found, regions=coloured, ignore=ignored[0].value if ignored else None)

    def to_tsv(self) -> str:
        """Return the labels as the text of a ``labels.tsv`` file; see `medseg.labels.label_files`."""
        rows = [LabelRow(label.value, label.name, label.colour) for label in self.items]
        rows += [LabelRow(r.output_value, r.name, r.colour, "region", r.values) for r in self.regions]
        if self.ignore is not None:
            rows.append(LabelRow(self.ignore, "ignore", IGNORED_COLOUR, "ignore"))
        return label_rows_to_tsv(rows)

    def with_regions(
        self, regions: Mapping[str, Sequence[int]], output_values: Mapping[str, int] | None = None
    ) -> Labels:
        """Return the same labels for a network that predicts `regions` instead; if they are empty, it predicts the labels.

        Args:
            regions: Values of the labels in each region, by name. In a label map, later regions overwrite earlier
                ones, so list larger regions first.
            output_values: Value that represents a region in a label map, by name. By default this is the smallest
                value of the region that is in no later region, or else its smallest value: 1, 2 and 3 for
                ``whole: [1, 2, 3], core: [2, 3], enhancing: [3]``.

        Returns:
            A copy of the labels with these regions.

        Raises:
            DataError: A value is unknown, a name is not unique, or a region has no values.
        """
        given, found = output_values or {}, []
        groups = {str(name): tuple(sorted(set(values))) for name, values in regions.items()}
        for index, (name, values) in enumerate(groups.items()):
            later = {value for group in list(groups.values())[index + 1 :] for value in group}
            own = [value for value in values if value not in later] or list(values)
            value = given.get(name, own[0] if own else 0)
            colour = next(
                (label.colour for label in self.items if label.value == value), distinct_colour(index + 1)
            )
            found.append(Region(name, values, value, colour))
        return replace(self, regions=tuple(found))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labels in class order."""
        return tuple(label.name for label in self.items)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of labels and regions, without duplicates."""
        return tuple(dict.fromkeys((*self.names, *(region.name for region in self.regions))))

    @property
    def values(self) -> tuple[int, ...]:
        """The values of the labels in class order."""
        return tuple(label.value for label in self.items)

    @property
    def foreground(self) -> tuple[Label, ...]:
        """The labels without the background."""
        return self.items[1:]

    @property
    def colours(self) -> dict[str, Colour]:
        """The colours of the labels and of the regions, by name."""
        return {one.name: one.colour for one in (*self, *self.regions)}

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network: its regions, or its classes including the background."""
        return len(self.regions) or len(self.items)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs of a network in order: regions, or classes with the background first."""
        return tuple(region.name for region in self.regions) or self.names

    @property
    def evaluated(self) -> tuple[Region, ...]:
        """The regions by which predictions are evaluated; without regions, one region for each foreground label."""
        return self.regions or tuple(
            Region(label.name, (label.value,), label.value, label.colour) for label in self.foreground
        )

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def value_of(self, name: str) -> int:
        """Return the value of a label.

        Args:
            name: Name of the label.

        Returns:
            The value in label maps.

        Raises:
            DataError: There is no label of this name.
        """
        for label in self.items:
            if label.name == name:
                return label.value
        raise DataError(
            f"unknown label {name!r}.{did_you_mean(name, self.names)} Known: {', '.join(self.names)}."
        )

    def left_right_pairs(self) -> tuple[tuple[str, str], ...]:
        """Return pairs of names that differ only by left and right, such as ``("left_kidney", "right_kidney")``."""
        return opposite_names(self.all_names, "left", "right")

    def to_classes(self, values: NDArray[Any], where: str = "label map") -> NDArray[Any]:
        """Convert values in files to class indices.

        Args:
            values: Label map of any shape.
            where: File or case, for messages.

        Returns:
            Class indices of the same shape, uint8, or uint16 for more than 256 classes; K for the value `ignore`.

        Raises:
            DataError: A value is not in the table. The message states the number of voxels.
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
        """Return how to fix unknown values. Many tools store a mask of one structure as 0 and 255."""
        usual = "add it to the dataset's labels, or fix the label map."
        if self.values != (0, 1) or not (values[unknown] == 255).all() or values[~unknown].any():
            return usual.capitalize()
        return f"If it is a mask of 0 and 255, set data.labels={{{self.names[1]}: 255}}; else {usual}"

    def _nearest_classes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return class indices that are correct where a value is in the table, by table look-up for speed."""
        table = np.array(self.values)
        dtype = np.uint8 if len(table) + (self.ignore is not None) <= 256 else np.uint16
        if values.dtype.kind not in "iu" or table[-1] >= _LARGEST_LOOKUP:
            return np.clip(np.searchsorted(table, values), 0, len(table) - 1).astype(dtype)
        lookup = np.zeros(table[-1] + 1, dtype=dtype)
        lookup[table] = np.arange(len(table))
        top = min(int(table[-1]), int(np.iinfo(values.dtype).max))
        return np.asarray(lookup[np.clip(values, 0, top)])

    def to_values(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Convert class indices to values in files.

        Args:
            classes: Class indices of any shape; K stands for `ignore`.

        Returns:
            Values of the same shape, in the smallest integer type that holds the values of all labels (and of
            `ignore`, if it occurs).
        """
        has_ignored = self.ignore is not None and bool(np.any(np.asarray(classes) == len(self)))
        table = np.array((*self.values, self.ignore) if has_ignored else self.values)
        dtype = np.uint8 if table.max() < 256 else np.uint16 if table.max() < 65536 else np.int32
        return np.take(table.astype(dtype), classes)


def unnamed_label(value: int) -> str:
    """Return the name of a label that has only a value.

    Args:
        value: Value in label maps.

    Returns:
        The name.

    Examples:
        >>> unnamed_label(3)
        'label_3'
    """
    return f"label_{value}"


def _is_one_line(name: str) -> bool:
    return bool(name.strip()) and not any(unicodedata.category(letter) in _NOT_IN_A_LINE for letter in name)


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown + (f", ... ({len(values)} values)" if len(values) > 12 else "")
