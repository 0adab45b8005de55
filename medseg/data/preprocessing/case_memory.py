"""Estimates of the memory that a case needs, from the headers of its images.

The bytes per voxel are the largest ones measured on images of int16 and float32 at several spacings, rounded up; a test
compares them with the memory that is taken.
"""

from __future__ import annotations

from math import prod

from medseg.data.datasets.cases import Case
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import MedsegError
from medseg.volumes.grid import Grid, shape_at_spacing

_BUFFERS = 50_000_000  # bytes whatever the size of a case
_READING = 16  # bytes per voxel of the file: label map, masks and buffers of the reader
_READING_CHANNEL = 16  # additional bytes per voxel and channel
_PREPARED = 8  # bytes per prepared voxel: label map and shares of labels
_PREPARED_CHANNEL = 8  # additional bytes per prepared voxel and channel


def measuring_bytes(case: Case, channels: int) -> int:
    """Return an estimate of the bytes that reading and measuring a case takes.

    Args:
        case: The case.
        channels: Number of its channels.

    Returns:
        Bytes; 0 if the header of the first image cannot be read, which is reported when the case is read.
    """
    grid = _grid(case)
    return 0 if grid is None else _BUFFERS + prod(grid.shape) * (_READING + _READING_CHANNEL * channels)


def preparing_bytes(case: Case, settings: Preprocessing, labels: int = 0) -> int:
    """Return an estimate of the bytes that the preparation of a case takes.

    Args:
        case: The case.
        settings: Resolved preprocessing.
        labels: Number of labels, for a case with label probabilities.

    Returns:
        Bytes; 0 if the header of the first image cannot be read, which is reported when the case is read.
    """
    grid = _grid(case)
    if grid is None:
        return 0
    soft = 0 if case.probabilities is None else labels
    channels = len(settings.channels)
    upright = grid.reoriented(settings.axcodes(grid))
    wanted = settings.target_spacing(upright.spacing)
    target = prod(shape_at_spacing(upright.shape, upright.spacing, wanted))
    return (
        measuring_bytes(case, channels)
        + target * (_PREPARED + _PREPARED_CHANNEL * (channels + soft))
        + prod(grid.shape) * _READING_CHANNEL * soft
    )


def _grid(case: Case) -> Grid | None:
    try:
        return case.reading.read_grid(case.images[0])
    except MedsegError:
        return None
