"""Images that cannot be what a model was trained on: other channels, constant intensities, a single slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.preprocessing.prepare import channels_advice
from medseg.errors import DataError, warn_once
from medseg.volumes.volume import Volume

_STRIDE = 8  # voxels; almost every image differs within its first sample


def check_against_model(
    image: Volume, names: Sequence[str], window: Sequence[int], files: Sequence[str], where: str
) -> None:
    """Refuse an image with other channels than a model has, and warn of one on which the model finds nothing.

    Args:
        image: Image as read from its files.
        names: Names of the channels of the model.
        window: Voxels of the model's window per axis; 1 along the slice axis of a 2D model.
        files: Names of the image's files.
        where: First file, for messages.

    Raises:
        DataError: The number of channels differs.
    """
    if image.channels != len(names):
        raise DataError(
            f"{where}: channels: found {image.channels} ({', '.join(files)}), expected {len(names)} ({', '.join(names)}). "
            f"{channels_advice(image, len(names))}"
        )
    for name, channel in zip(names, image.data, strict=True):
        if is_constant(channel):
            warn_once(
                f"{where}: channel {name}: found the value {channel.flat[0]:g} in all voxels, expected different values. Check the "
                "file; models label most images without contrast as background."
            )
    if min(window) > 1 and min(image.grid.shape) == 1:
        shape = "x".join(map(str, image.grid.shape))
        warn_once(
            f"{where}: found a single slice ({shape} voxels), expected a volume, because the model is 3D and the windows are mostly "
            "padding. Give the volume, or use a 2D model."
        )


def is_constant(values: NDArray[Any]) -> bool:
    """Return whether all values are equal; most arrays are decided by a sample."""
    first = values.flat[0]
    sample = values[tuple(slice(None, None, _STRIDE) for _ in values.shape)]
    return bool((sample == first).all()) and bool(np.all(values == first))
