"""Named segments of a volume, which may overlap.

A label map holds one value per voxel. Files for segmentations, such as DICOM-SEG, RTSTRUCT and those of 3D Slicer, hold
segments that may share voxels. `Segments` keeps them in as few layers as possible; without overlaps there is one layer,
which is the label map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean, shown_text, warn_once
from medseg.labels.colours import Colour
from medseg.labels.label_files import LARGEST_VALUE
from medseg.labels.label_table import Labels, unnamed_label
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

Planes = Mapping[int, NDArray[np.bool_]]
"""The masks `(X, Y)` of a segment by their index along the third axis; planes without a voxel may be missing."""


@dataclass(frozen=True)
class Algorithm:
    """The model that predicted a label map, as DICOM segmentations record it.

    Attributes:
        name: Name of the model.
        version: Its version.

    Examples:
        >>> Algorithm("liver", "1f3a9c")
        Algorithm(name='liver', version='1f3a9c')
    """

    name: str
    version: str


@dataclass(frozen=True)
class Segment:
    """The description of a segment.

    Attributes:
        value: Value of its voxels, from 1.
        name: Name as in the file; several segments may have the same name.
        colour: Display colour; None if the file states none.
    """

    value: int
    name: str
    colour: Colour | None = None


@dataclass(frozen=True)
class Segments:
    """The segments of a file on a grid.

    Attributes:
        volume: Layers `(L, X, Y, Z)` of segment values; segments of the same layer do not overlap.
        items: The segments, in the order of the file.
        where: The file, for messages.

    Examples:
        >>> whole, part = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
        >>> whole[:3], part[1:2] = True, True
        >>> grid = Grid.from_spacing((4, 4, 1))
        >>> found = layered(grid, [(Segment(1, "liver"), {0: whole}), (Segment(2, "tumour"), {0: part})], "case.seg.dcm")
        >>> found.volume.channels, found.labels.names
        (2, ('background', 'liver', 'tumour'))
        >>> np.unique(found.label_map(order=["liver", "tumour"]).data, return_counts=True)[1].tolist()
        [4, 8, 4]
    """

    volume: Volume
    items: tuple[Segment, ...]
    where: str

    @property
    def labels(self) -> Labels:
        """The label table; the value is appended to names that occur twice."""
        return unique_labels({item.value: (item.name, item.colour) for item in self.items}, self.where)

    def label_map(self, order: Sequence[str] | None = None) -> Volume:
        """Return the segments as a label map.

        Args:
            order: Names of the segments to keep; where they overlap, later ones cover earlier ones. None keeps all segments,
                which must not overlap.

        Returns:
            Volume `(1, X, Y, Z)` of segment values.

        Raises:
            DataError: Segments overlap although no order is given, or a name is unknown.
        """
        layers = self.volume.data
        if order is None:
            if len(layers) > 1:
                raise DataError(self._overlap())
            return self.volume.with_data(layers, "label")
        values = {
            name: value for name, value in zip(self.labels.names, self.labels.values, strict=True) if value
        }
        merged = np.zeros_like(layers[:1])
        for name in order:
            if name not in values:
                raise DataError(
                    f"{self.where}: unknown segment {name!r}.{did_you_mean(name, values)} Known: {', '.join(values)}."
                )
            merged[0][(layers == values[name]).any(axis=0)] = values[name]
        return self.volume.with_data(merged, "label")

    def placed(self, grid: Grid) -> Segments:
        """Return the segments on a larger grid with the same voxels, or one in another orientation.

        Args:
            grid: Grid of the image that the segments belong to.

        Returns:
            The segments on `grid`; voxels outside of this volume are 0.

        Raises:
            DataError: The voxels of both grids do not coincide, or a segment reaches beyond `grid`.
        """
        own = self.volume.reoriented_like(grid)
        offset = np.linalg.inv(grid.affine) @ own.grid.affine
        start = np.round(offset[:3, 3]).astype(int)
        cropped = grid.cropped(start.tolist(), own.grid.shape)
        if not cropped.matches(own.grid):
            raise DataError(
                f"{self.where}: not on the grid of its image: found {own.grid!r}, expected voxels of {grid!r}. Give the image that "
                "was segmented."
            )
        data = np.zeros((len(own.data), *grid.shape), own.data.dtype)
        ends = np.minimum(start + own.grid.shape, grid.shape)
        begins = np.maximum(start, 0)
        target = tuple(slice(b, max(b, e)) for b, e in zip(begins, ends, strict=True))
        inside = tuple(slice(b, max(b, e)) for b, e in zip(begins - start, ends - start, strict=True))
        data[(slice(None), *target)] = own.data[(slice(None), *inside)]
        if np.count_nonzero(data) < np.count_nonzero(own.data):
            raise DataError(
                f"{self.where}: found segments that reach beyond its image, expected them within it. Give the image that was segmented."
            )
        return Segments(Volume(data, grid), self.items, self.where)

    def _overlap(self) -> str:
        """Return the message about the first two segments that overlap."""
        first, second = self.volume.data[:2]
        shared = (first > 0) & (second > 0)
        pair = np.stack([first[shared], second[shared]])
        names = dict(zip(self.labels.values, self.labels.names, strict=True))
        one, other = (names[int(value)] for value in pair[:, 0])
        count = int((pair == pair[:, :1]).all(axis=0).sum())
        return (
            f"{self.where}: found segments that overlap ({one} and {other} share {count} voxels), expected one label per voxel. Choose "
            "which segments cover which: medseg.write(medseg.io.read_segments(FILE).label_map(order=[NAME, ...]), NEW_FILE)."
        )


def layered(grid: Grid, segments: Iterable[tuple[Segment, Planes]], where: str) -> Segments:
    """Return segments in as few layers as needed: each goes to the first layer in which its voxels are free.

    Args:
        grid: Grid of the segments.
        segments: Each segment and its planes `(X, Y)` along the third axis of the grid.
        where: The file, for messages.

    Returns:
        The segments.
    """
    pending = list(segments)
    largest = max((segment.value for segment, _ in pending), default=0)
    dtype = np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32
    layers = [np.zeros(grid.shape, dtype)]
    for segment, planes in pending:
        free = (layer for layer in layers if not any(layer[..., k][mask].any() for k, mask in planes.items()))
        layer = next(free, None)
        if layer is None:
            layer = np.zeros(grid.shape, dtype)
            layers.append(layer)
        for k, mask in planes.items():
            layer[..., k][mask] = segment.value
    data = np.stack(layers) if len(layers) > 1 else layers[0][None]
    return Segments(Volume(data, grid), tuple(segment for segment, _ in pending), where)


def unique_labels(names: Mapping[int, tuple[str, Colour | None]], where: str) -> Labels:
    """Return the label table of names by value.

    Args:
        names: Name and colour (None without one) by value. The value is appended to names that occur twice;
            impossible values are left out with a warning, and the background keeps its name.
        where: The file, for the warning.

    Returns:
        The labels in ascending order of values.
    """
    kept = {
        value: (shown_text(" ".join(name.split())), colour)
        for value, (name, colour) in names.items()
        if 0 < value <= LARGEST_VALUE
    }
    if left_out := sorted(set(names) - set(kept) - {0}):
        warn_once(
            f"{where}: header: found names of the values {left_out[:5]}, expected values from 1 to {LARGEST_VALUE}; these names are ignored."
        )
    seen: dict[str, int] = {"background": 0}
    colours: dict[str, Colour] = {}
    for value, (name, colour) in sorted(kept.items()):
        unique = name or unnamed_label(value)
        while unique in seen:
            unique = f"{unique} ({value})"
        seen[unique] = value
        if colour is not None:
            colours[unique] = colour
    return Labels.from_names(seen, colours)
