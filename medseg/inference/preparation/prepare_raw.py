"""Preparation of images whose intensities are resampled raw, for one network or for several parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.typing import DTypeLike

from medseg.data.preprocessing.prepare import Box, check_image, prepare
from medseg.data.preprocessing.raw_resampling import nearest_label_target, resampled_raw, with_channels
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.skip_empty import empty_limits
from medseg.inference.sliding.slices import LazyImage
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.window_network import SLAB_FIRST
from medseg.model_folder.settings import SavedModel
from medseg.volumes.volume import Volume


def prepare_raw(
    file: Volume,
    saved: SavedModel,
    dtype: DTypeLike,
    where: str,
    body: Callable[[Volume], Box | None],
) -> PreparedPrediction:
    """Resample, crop and normalise an image for a model with ``preprocessing.resample_raw``.

    The image is resampled once. Each different normalisation of the parts is a channel of the prepared image, which is computed
    some slices at a time from the same resampled image.

    Args:
        file: Image as read from its file.
        saved: Settings of the model.
        dtype: Integer type of the label map.
        where: File or case, for messages.
        body: Returns the box of the resampled image to keep instead of that of its non-zero voxels, or None.

    Returns:
        The prepared image, and the label map on the grid of the file.

    Raises:
        DataError: The image does not fit the model.
    """
    settings = saved.seen_preprocessing
    check_image(file, len(saved.channel_names), where)
    own = resampled_raw(file, settings, where)
    image = with_channels(own, len(settings.channels)) if saved.parts else own
    # Nothing is left to resample.
    ready = settings.model_copy(update={"orientation": None, "spacing": None, "resample_raw": None})
    prepared = prepare(image, ready, where, body(own))
    found = nearest_label_target(prepared, file, settings, dtype)
    if found is None:  # a thin box of non-zero voxels that no voxel of a coarse file is nearest to
        whole = ((0, 0, 0), own.grid.shape)
        prepared = prepare(image, ready, where, whole)
        found = nearest_label_target(prepared, file, settings, dtype)
    assert found is not None
    target, nearest = found
    indices = [torch.from_numpy(nearest[axis]) for axis in SLAB_FIRST]
    axes = tuple(LinearWeights(index, index, torch.zeros(len(index))) for index in indices)
    empty = empty_limits(ready, prepared.slices.lowest) if saved.predict.skip_empty else None
    return PreparedPrediction(LazyImage(prepared.slices), target, axes, empty, where=where, geometry=prepared)
