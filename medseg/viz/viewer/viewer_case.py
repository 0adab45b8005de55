"""What the viewer shows of one case, and its form in the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.labels.colours import IGNORED_COLOUR, Colour, distinct_colour
from medseg.labels.label_table import Labels, unnamed_label
from medseg.viz.slice_images import WINDOWS, Window, is_colour, labels_on_grid_of, window_of
from medseg.viz.viewer.reduce import (
    Factors,
    fitting_factors,
    has_fractions,
    packed_nifti,
    reduce_image,
    reduce_labels,
)
from medseg.volumes.volume import Volume

REFERENCE = "reference"
AGREEMENT: Mapping[int, tuple[str, Colour]] = MappingProxyType(
    {
        1: ("same label in both", (120, 190, 120)),
        2: ("only in the prediction", (240, 140, 30)),
        3: ("only in the reference", (60, 140, 240)),
        4: ("another label", (190, 70, 200)),
    }
)


_OVERLAY_STEPS = 255


@dataclass(frozen=True)
class ViewerCase:
    """An image and its label maps, as the viewer shows them.

    Attributes:
        name: Name in the menu of cases; it is shown as it is.
        image: Image in any orientation. Three channels of bytes are shown as colours.
        maps: Label maps by name, such as ``"prediction"`` and ``"reference"``; the first is shown first. They are resampled
            for display if their grid differs from the image's.
        labels: Names and colours of the values, or None; a value without a name is called ``label_1`` and so on.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.
        notes: Sentences shown below the image, for example about the quality of the prediction.
        overlays: Maps of numbers by name that are shown over the image in a scale of colours, such as the uncertainty of a
            prediction; each channel is one map. They are interpolated if their grid differs from the image's.
    """

    name: str
    image: Volume
    maps: Mapping[str, Volume] = field(default_factory=dict)
    labels: Labels | None = None
    window: Window = None
    notes: tuple[str, ...] = ()
    overlays: Mapping[str, Volume] = field(default_factory=dict)

    def payload(self, max_bytes: int) -> dict[str, Any]:
        """Return the content of the page for this case, which can be written as JSON.

        Args:
            max_bytes: Bytes for the volumes, as text in base64. The image is reduced until it fits.

        Returns:
            Values for ``viewer.js``, with volumes as base64 text.

        Raises:
            ConfigError: The window is unknown.
            DataError: A label map holds values that are negative or no whole numbers.
        """
        maps = {name: labels_on_grid_of(self.image, volume) for name, volume in self.maps.items()}
        values = _values_in(maps)
        numbered = {name: _numbered(volume, values) for name, volume in maps.items()}
        measured = dict(_by_channel(self.image, self.overlays))
        room = _image_bytes(max_bytes, numbered, measured)
        rounded = fitting_factors(self.image, room) != (1, 1, 1) and has_fractions(self.image.data)
        factors = fitting_factors(self.image, room, rounded=rounded)
        shown = reduce_image(self.image, factors)
        small = {name: reduce_labels(volume, factors) for name, volume in numbered.items()}
        return {
            "name": self.name,
            "note": _reduction_note(factors, self.image, rounded=rounded),
            "notes": list(self.notes),
            "flat": 1 in self.image.grid.shape,
            "inPixels": self.image.grid.in_pixels,
            "toVoxel": np.linalg.inv(self.image.grid.affine).tolist(),
            "factors": list(factors),
            "exact": factors == (1, 1, 1),
            "focus": _focus(next(iter(maps.values()), self.image)),
            "channels": _channels(shown, self.image, self.window, rounded=rounded),
            "maps": [{"name": name, "data": _packed(volume)} for name, volume in small.items()],
            "difference": _difference(small),
            "overlays": [
                _scaled(name, volume, reduce_image(volume, factors)) for name, volume in measured.items()
            ],
            "agreement": [_entry(value, *shown) for value, shown in AGREEMENT.items()],
            "labels": _label_entries(values, self.maps, self.labels),
        }


def _image_bytes(max_bytes: int, maps: Mapping[str, Volume], overlays: Mapping[str, Volume]) -> int:
    """Return the bytes for the compressed image: base64 takes four characters for three bytes, and maps go first."""
    taken = sum(len(_packed(volume)) for volume in maps.values())
    taken += sum(len(_packed_overlay(volume)) for volume in overlays.values())
    return max((max_bytes - taken) * 3 // 4, max_bytes // 8)


def _packed(volume: Volume) -> str:
    return _text(packed_nifti(volume.data[0], volume.grid, labels=True))


def _packed_overlay(volume: Volume) -> str:
    return _text(packed_nifti(volume.data[0], volume.grid, rounded=True, steps=_OVERLAY_STEPS))


def _by_channel(image: Volume, overlays: Mapping[str, Volume]) -> Iterator[tuple[str, Volume]]:
    """Yield the name and the numbers of each channel of each overlay on the grid of the image; what is not finite becomes 0."""
    for name, volume in overlays.items():
        on_grid = volume.resampled(like=image.grid, order=1)
        for number, channel in enumerate(on_grid.data, start=1):
            finite = np.nan_to_num(channel[None], nan=0.0, posinf=0.0, neginf=0.0)
            yield name if volume.channels == 1 else f"{name} {number}", on_grid.with_data(finite, "image")


def _scaled(name: str, volume: Volume, shown: Volume) -> dict[str, Any]:
    """Return name, packed voxels and the ends of the scale of colours: 0 to 1 if all numbers are in between."""
    low, high = float(volume.data.min()), float(volume.data.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return {"name": name, "data": _packed_overlay(shown), "low": low, "high": high}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _reduction_note(factors: Factors, image: Volume, *, rounded: bool) -> str:
    notes = ["Intensities are rounded to 1/65,535 of their range."] if rounded else []
    if factors != (1, 1, 1):
        notes.append(
            f"Reduced for display: each voxel shown is the mean of {' × '.join(map(str, factors))} voxels of the image "
            f"({' × '.join(map(str, image.grid.shape))}). Small structures can be missing; volumes in ml are those of the "
            "full label maps."
        )
    return " ".join(notes)


def _channels(shown: Volume, image: Volume, window: Window, *, rounded: bool) -> list[dict[str, Any]]:
    """Return the data and the intensity windows of each channel; colours are one channel."""
    if is_colour(image):
        pixels = packed_nifti(np.moveaxis(shown.data, 0, -1), shown.grid)
        return [{"name": "colours", "data": _text(pixels), "colour": True, "windows": []}]
    return [
        {
            "name": f"channel {index + 1}",
            "data": _text(packed_nifti(channel, shown.grid, rounded=rounded)),
            "colour": False,
            "windows": _windows(image, window, index),
        }
        for index, channel in enumerate(shown.data)
    ]


def _windows(image: Volume, window: Window, channel: int) -> list[dict[str, Any]]:
    """Return the intensity windows to choose from; those of CT only for CT."""
    windows = [("automatic", *window_of(image, window, channel=channel))]
    if window_of(image, channel=channel) in WINDOWS.values():
        windows += [(name, level, width) for name, (level, width) in WINDOWS.items()]
    return [
        {"name": name, "low": level - width / 2, "high": level + width / 2} for name, level, width in windows
    ]


def _difference(maps: Mapping[str, Volume]) -> str | None:
    """Return the packed map of `AGREEMENT` between the reference and the first other map; None without a reference."""
    others = [volume for name, volume in maps.items() if name != REFERENCE]
    if REFERENCE not in maps or not others:
        return None
    reference, predicted = maps[REFERENCE], others[0]
    r, p = reference.data, predicted.data
    codes = np.zeros(r.shape, np.uint8)
    codes[(p == r) & (r != 0)] = 1
    codes[(p != 0) & (r == 0)] = 2
    codes[(p == 0) & (r != 0)] = 3
    codes[(p != 0) & (r != 0) & (p != r)] = 4
    return _packed(reference.with_data(codes))


def _values_in(maps: Mapping[str, Volume]) -> list[int]:
    """Return the values other than 0 that occur in a map, in ascending order."""
    found: set[int] = set()
    for name, volume in maps.items():
        values = np.unique(volume.data)
        if values[0] < 0:
            raise DataError(
                f"{name}: found values from {values[0]} to {values[-1]}, expected label values from 0. Give the label map, not "
                "an image."
            )
        found.update(values.tolist())
    return sorted(found - {0})


def _numbered(volume: Volume, values: Sequence[int]) -> Volume:
    """Return a map in which each value is replaced by its place in `values`, from 1; colour tables are short then."""
    numbers = np.searchsorted([*values], volume.data) + 1
    numbers[volume.data == 0] = 0
    return volume.with_data(numbers.astype(np.uint8 if len(values) < 256 else np.uint16))


def _label_entries(
    values: Sequence[int], maps: Mapping[str, Volume], labels: Labels | None
) -> list[dict[str, Any]]:
    """Return value, name, colour and volumes in ml of each value; a value without a name is called ``label_1`` and so on."""
    table = Labels.from_values(np.array(values, np.int64)) if labels is None else labels
    named = {label.value: (label.name, label.colour) for label in table}
    if table.ignore is not None:
        named[table.ignore] = ("ignore", IGNORED_COLOUR)
    found = []
    for place, value in enumerate(values, start=1):
        name, colour = named.get(value, (unnamed_label(value), distinct_colour(place)))
        ml = {
            key: float((volume.data == value).sum() * volume.grid.voxel_volume / 1000)
            for key, volume in maps.items()
        }
        found.append({**_entry(value, name, colour), "ml": ml})
    return found


def _entry(value: int, name: str, colour: Colour) -> dict[str, Any]:
    return {"value": value, "name": name, "colour": list(colour)}


def _focus(volume: Volume) -> list[float]:
    """Return the position in mm at which the viewer opens: in a slice with much foreground, near the centre of it."""
    data: NDArray[Any] = volume.data[0]
    index = np.array(data.shape) // 2
    if volume.is_label and data.any():
        counts = (data != 0).sum((0, 1))
        full = np.flatnonzero(counts > 0.7 * counts.max())
        index[2] = full[len(full) // 2]
        inside = np.argwhere(data[..., index[2]] != 0)
        nearest = ((inside - inside.mean(0)) ** 2).sum(1).argmin()
        index[:2] = inside[nearest]
    affine = volume.grid.affine
    position: list[float] = (affine[:3, :3] @ index + affine[:3, 3]).tolist()
    return position
