"""The windows on which the ranges of 8-bit integers are calibrated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.datasets.cases import Case
from medseg.inference.engines.engine_model import EngineModel
from medseg.inference.predictor import Predictor
from medseg.models.base import Model
from medseg.runtime.progress import Progress

_LARGEST_BYTES = 1_000_000_000


class _Recorder(Model):
    """Keeps a random sample of the images that a network would see, and returns logits of zero.

    Args:
        model: The network.
        count: Maximum number of images to keep.
    """

    def __init__(self, model: Model, count: int) -> None:
        super().__init__(
            spatial_dims=model.spatial_dims,
            in_channels=model.in_channels,
            num_classes=model.num_classes,
            divisor=model.divisor,
        )
        self.images: list[NDArray[np.float32]] = []
        self._count, self._seen = count, 0
        self._random = np.random.default_rng(0)

    def forward(self, image: Tensor) -> Tensor:
        """Return zeros of the shape of the logits."""
        for one in image.split(1):
            self._count = max(1, min(self._count, _LARGEST_BYTES // (4 * one.numel())))
            self._seen += 1
            # Reservoir sampling: each image seen so far is kept with the same probability.
            place = self._seen - 1 if self._seen <= self._count else int(self._random.integers(self._seen))
            if place < self._count:
                self.images[place : place + 1] = [one.float().numpy().copy()]
        return torch.zeros((len(image), self.num_classes, *image.shape[2:]))


def calibration_windows(
    predictor: Predictor, cases: Sequence[Case], count: int, progress: Progress | None = None
) -> list[NDArray[np.float32]]:
    """Return windows of cases as the network of a predictor sees them; empty windows are left out, as in prediction.

    Args:
        predictor: The predictor, on the processor.
        cases: Cases to take windows from.
        count: Maximum number of windows; fewer if they would take more than 1 GB.
        progress: Called after each case with (done, total, case id).

    Returns:
        Images `(1, c, *spatial)` of the network, of a 2D network slices; a random sample with a fixed seed.

    Raises:
        DataError: A case cannot be read.
    """
    model = predictor.model
    recorder = _Recorder(model.original if isinstance(model, EngineModel) else model, count)
    changes = {"engine": "torch", "precision": "float32", "mirror_axes": (), "compile": False}
    saved = predictor.saved.replace(predict=predictor.settings.merged(changes).to_plain())
    recording = Predictor(recorder, saved, predictor.labels, device="cpu", max_memory=predictor.max_memory)
    for number, case in enumerate(cases, start=1):
        recording(case)
        if progress is not None:
            progress(number, len(cases), case.id)
    return recorder.images
