"""What nnU-Net recorded of the training images: spacings of ``dataset_fingerprint.json``, intensities of the plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.data.preprocessing.training_data import Range, TrainingData
from medseg.errors import DataError
from medseg.interop.nnunet.plans import Plans
from medseg.storage.json_files import read_object

FILE = "dataset_fingerprint.json"


def training_record(folder: Path, plans: Plans, channels: int) -> TrainingData | None:
    """Return the ranges of the training images of a trained folder.

    Args:
        folder: Trained folder. Its ``dataset_fingerprint.json`` may be missing, as in folders of older versions.
        plans: Its plans, whose intensities are those of labelled voxels.
        channels: Number of channels.

    Returns:
        The record; None if neither spacings nor intensities are known.

    Raises:
        DataError: ``dataset_fingerprint.json`` is damaged.
    """
    path = folder / FILE
    values = read_object(path) if path.is_file() else {}
    spacings = values.get("spacings", [])
    if not _are_triples(spacings):
        raise DataError(
            f"{path}: spacings: found {str(spacings)[:60]}, expected a list of three positive numbers per case. Copy the file again."
        )
    # nnU-Net's arrays have the axes of a file in reverse order.
    spacing = tuple(_range(case[axis] for case in spacings) for axis in (2, 1, 0)) if spacings else None
    foreground = _foreground(plans, channels)
    if spacing is None and not foreground:
        return None
    return TrainingData.parse(
        {"cases": len(spacings), "spacing": spacing, "foreground": foreground}, source=str(path)
    )


def _foreground(plans: Plans, channels: int) -> tuple[Range, ...]:
    """Return the percentiles of labelled voxels of each channel; nothing if a channel is missing."""
    known = [plans.intensities.get(str(channel)) for channel in range(channels)]
    return (
        tuple((one.percentile_00_5, one.percentile_99_5) for one in known if one is not None)
        if all(known)
        else ()
    )


def _are_triples(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(one, list)
        and len(one) == 3
        and all(isinstance(size, int | float) and math.isfinite(size) and size > 0 for size in one)
        for one in values
    )


def _range(values: Any) -> Range:
    listed: Sequence[float] = list(values)
    return min(listed), max(listed)
