"""Segmentations of 3D Slicer (``.seg.nrrd``): layers of label values, with a name and a colour for each segment.

The segments are described by fields of the NRRD header such as ``Segment0_Name``. Segments that overlap are in different layers, which
are the first axis of a 4D file. A value may occur in several layers, each time for another segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.gzip_stream import compressing
from medseg.io.itk.sitk import LPS_TO_RAS, read_sitk
from medseg.io.nifti.nifti_files import storable
from medseg.labels.colours import Colour
from medseg.labels.label_table import Labels
from medseg.labels.segments import Planes, Segment, Segments, layered
from medseg.storage.atomic import replacing
from medseg.volumes.volume import Volume

_LONGEST = 4 << 20  # bytes of a header
_FIELD = re.compile(r"Segment(\d{1,5})_(\w+)\Z")
_TYPES = {
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "int16": "short",
    "int32": "int",
    "uint32": "unsigned int",
}


@dataclass(frozen=True)
class _Stored:
    """A segment as the file stores it: its description, its layer and its value there."""

    segment: Segment
    layer: int
    value: int


def read_slicer_segmentation(path: Path) -> Segments:
    """Read a segmentation of 3D Slicer.

    Args:
        path: The ``.seg.nrrd`` file.

    Returns:
        The segments, on the grid of the file; 3D Slicer may have cut it to the voxels in use. Their values are those of the
        file unless a value occurs in several layers; then the segments are numbered in their order.

    Raises:
        DataError: The file is missing or damaged, voxels are not whole numbers, or a segment is in a layer that does not exist.
    """
    volume = read_sitk(path)
    if volume.data.dtype.kind not in "iu":
        raise DataError(
            f"{path}: found voxels of {volume.data.dtype}, expected whole numbers. Save the segmentation as a binary label map."
        )
    stored = _segments(_fields(path), volume.channels, path)
    if not stored:
        values = [int(value) for value in np.unique(volume.data) if value > 0]
        stored = [_Stored(Segment(value, f"label_{value}"), 0, value) for value in values]
    return layered(
        volume.grid,
        [(one.segment, _planes(volume.data[one.layer] == one.value)) for one in stored],
        str(path),
    )


def slicer_segments(path: Path) -> tuple[Segment, ...]:
    """Return the values, names and colours of the segments of a file; only its header is read.

    Args:
        path: The ``.seg.nrrd`` file.

    Returns:
        The segments, in the order of the file; empty if the header describes none.

    Raises:
        DataError: The description of a segment is invalid.
    """
    return tuple(one.segment for one in _segments(_fields(path), None, path))


def write_slicer_segmentation(volume: Volume, path: Path, names: Labels | None = None) -> None:
    """Write a label map, or layers of label values, as a segmentation of 3D Slicer.

    Args:
        volume: Whole numbers `(L, X, Y, Z)`, one channel per layer. A value belongs to the same segment in all layers.
        path: The file to create or replace.
        names: Names and colours of the values; None for ``label_1`` and so on.

    Raises:
        DataError: The voxels are not whole numbers from 0, a value has no name, the grid is sheared, or the file cannot be
            written.
    """
    data = storable(volume.data, path)
    if data.dtype.kind not in "iu" or data.min() < 0 or str(data.dtype) not in _TYPES:
        raise DataError(
            f"{path}: found voxels of {volume.data.dtype}, expected label values from 0. Write .nrrd instead."
        )
    if volume.grid.is_sheared:
        raise DataError(f"{path}: the grid is sheared, which 3D Slicer cannot show. Write .nii.gz instead.")
    names = Labels.from_values(data) if names is None else names
    header = "\n".join([*_geometry(volume, data), *_descriptions(data, names, path)]) + "\n\n"
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.encode())
        with compressing(file) as packed:
            stored = data if len(data) > 1 else data[0]
            packed.write(stored.astype(stored.dtype.newbyteorder("<")).tobytes(order="F"))


def _geometry(volume: Volume, data: NDArray[np.integer]) -> list[str]:
    """Return the lines of the header about type, size and position of the voxels."""
    affine = LPS_TO_RAS @ volume.grid.affine
    layers = len(data) > 1
    directions = [f"({','.join(repr(float(value)) for value in affine[:3, axis])})" for axis in range(3)]
    return [
        "NRRD0004",
        f"type: {_TYPES[str(data.dtype)]}",
        f"dimension: {4 if layers else 3}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, data.shape if layers else data.shape[1:]))}",
        f"space directions: {' '.join([*(['none'] if layers else []), *directions])}",
        f"kinds: {'list ' if layers else ''}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(repr(float(value)) for value in affine[:3, 3])})",
    ]


def _descriptions(data: NDArray[np.integer], names: Labels, path: Path) -> Iterator[str]:
    """Yield the lines of the header about the segments."""
    labels = {label.value: (label.name, label.colour) for label in names.foreground}
    labels |= {region.output_value: (region.name, region.colour) for region in names.regions}
    number = 0
    for layer, values in enumerate(data):
        for value in (int(one) for one in np.unique(values) if one > 0):
            if value not in labels:
                raise DataError(
                    f"{path}: found the value {value}, expected values that have a name. Give its name."
                )
            name, colour = labels[value]
            inside = np.argwhere(values == value)
            extent = " ".join(
                f"{low} {high}" for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
            )
            fields = {
                "ID": f"Segment_{value}",
                "Name": name,
                "NameAutoGenerated": "0",
                "Color": " ".join(f"{part / 255:.6g}" for part in colour),
                "ColorAutoGenerated": "0",
                "Extent": extent,
                "LabelValue": str(value),
                "Layer": str(layer),
                "Tags": "|",
            }
            yield from (f"Segment{number}_{key}:={_escaped(text)}" for key, text in fields.items())
            number += 1
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _fields(path: Path) -> dict[int, dict[str, str]]:
    """Return the fields of each segment in the header."""
    try:
        with path.open("rb") as file:
            head = file.read(_LONGEST)
    except OSError:
        return {}
    found: dict[int, dict[str, str]] = {}
    for line in re.split(r"\n\r?\n", head.decode("utf-8", "replace"), maxsplit=1)[0].splitlines():
        key, separator, text = line.partition(":=")
        match = _FIELD.match(key)
        if separator and match:
            plain = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), text)
            found.setdefault(int(match[1]), {})[match[2]] = plain.strip()
    return dict(sorted(found.items()))


def _segments(fields: Mapping[int, Mapping[str, str]], layers: int | None, path: Path) -> list[_Stored]:
    """Return the segments that a header describes.

    Old versions of 3D Slicer state neither layer nor value: each segment is a mask in a layer of its own.
    """
    found = []
    for index, (number, one) in enumerate(fields.items()):
        try:
            own = "Layer" not in one and "LabelValue" not in one
            layer, value = (index, 1) if own else (int(one.get("Layer", 0)), int(one.get("LabelValue", 1)))
            colour = _colour(one.get("Color", ""))
        except ValueError:
            raise DataError(
                f"{path}: Segment{number}: found {dict(one)!r:.100}, expected numbers in Layer, LabelValue and Color. Save the segmentation again."
            ) from None
        if value < 1 or layer < 0 or (layers is not None and layer >= layers):
            raise DataError(
                f"{path}: Segment{number}: found value {value} in layer {layer}, expected a value from 1 in one of {layers or 'the'} layers. Save the "
                "segmentation again."
            )
        found.append(
            _Stored(
                Segment(value, one.get("Name") or one.get("ID") or f"label_{value}", colour), layer, value
            )
        )
    if len({one.value for one in found}) == len(found):
        return found
    return [
        _Stored(Segment(number, one.segment.name, one.segment.colour), one.layer, one.value)
        for number, one in enumerate(found, start=1)
    ]


def _colour(text: str) -> Colour | None:
    """Return a colour, which the file gives as three shares of 1."""
    if not text:
        return None
    red, green, blue = (round(255 * min(max(float(share), 0.0), 1.0)) for share in text.split())
    return red, green, blue


def _planes(mask: NDArray[np.bool_]) -> Planes:
    return {int(k): mask[..., k] for k in np.flatnonzero(mask.any(axis=(0, 1)))}
