"""The part of an image around labels that a first stage finds in it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import DTypeLike

from medseg.data.preprocessing.prepare import LabelTarget, check_image
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import CropSettings, SavedModel
from medseg.volumes.boxes import Box, bounding_box
from medseg.volumes.resampling import AxisMap
from medseg.volumes.volume import Volume


def crop_box(found: Volume, settings: CropSettings, labels: Labels) -> Box | None:
    """Return the box around some labels of a label map, with a margin.

    Args:
        found: Label map of the first stage on the grid of the file.
        settings: The labels and the margin.
        labels: Labels of the first stage.

    Returns:
        One slice per axis of the file; None if none of the labels occurs.

    Raises:
        DataError: A label is not one of the first stage.
    """
    wanted = np.zeros(max(labels.values) + 1, bool)
    wanted[[labels.value_of(name) for name in settings.labels]] = True
    box = bounding_box(wanted[found.data[0]])
    if any(side.start >= side.stop for side in box):
        return None
    # Files hold spacings in single precision; TotalSegmentator cuts the margin to whole voxels.
    margins = [int(settings.margin_mm / float(np.float32(size))) for size in found.grid.spacing]
    return tuple(
        slice(max(0, side.start - margin), min(n, side.stop + margin))
        for side, margin, n in zip(box, margins, found.grid.shape, strict=True)
    )


def not_yet_cropped(file: Volume, saved: SavedModel, dtype: DTypeLike, where: str) -> PreparedPrediction:
    """Return a placeholder for the prediction of an image that the first stage has not been run on.

    At the spacing of the network, the whole image may be many times as large as the part that is left of it.

    Args:
        file: Image as read from its file.
        saved: Settings of the model.
        dtype: Integer type of the label map.
        where: File or case, for messages.

    Returns:
        A prediction with the label map on the grid of the file, and an image of one voxel.

    Raises:
        DataError: The image does not fit the model.
    """
    check_image(file, len(saved.channel_names), where)
    data = np.zeros(file.grid.shape, dtype, order="F")
    volume = Volume(data[None], file.grid, "label", file.header)
    one = slice(0, 1)
    target = LabelTarget(volume, (AxisMap.resize(1, 1),) * 3, None, file.grid.axcodes, (one, one, one))
    channels = len(saved.seen_preprocessing.channels)
    axis = LinearWeights.from_axis_map(AxisMap.resize(1, 1))
    return PreparedPrediction(
        InMemoryImage(torch.zeros(channels, 1, 1, 1)), target, (axis, axis, axis), where=where
    )
