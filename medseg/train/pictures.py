"""Pictures of a training's progress."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.labels import Labels


def validation_picture(
    image: Tensor, reference: Tensor, predicted: Tensor, labels: Labels, most: int = 4
) -> NDArray[np.uint8]:
    """Rows of image, reference and prediction, each in the slice with the most foreground.

    Args:
        image: `(n, c, *spatial)`. reference, predicted: class indices `(n, 1, *spatial)`.
        labels: for the colours.
        most: samples shown.

    Returns:
        `(H, W, 3)`, with the second array axis upwards.
    """
    palette = np.array([label.colour for label in labels], dtype=np.float32)
    rows = []
    for sample in range(min(most, len(image))):
        grey, truth, guess = (t[sample, 0].float().numpy() for t in (image, reference, predicted))
        if grey.ndim == 3:
            z = int((truth > 0).sum((0, 1)).argmax())
            grey, truth, guess = grey[..., z], truth[..., z], guess[..., z]
        low, high = np.percentile(grey, [0.5, 99.5])
        shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)[..., None] * np.full(3, 255.0)
        panels = [shown, _painted(shown, truth, palette), _painted(shown, guess, palette)]
        rows.append(np.concatenate([np.flipud(panel.transpose(1, 0, 2)) for panel in panels], axis=1))
    return np.concatenate(rows).astype(np.uint8)


def _painted(
    rgb: NDArray[np.floating], classes: NDArray[np.floating], palette: NDArray[np.float32]
) -> NDArray[np.floating]:
    index = classes.astype(np.intp)
    return np.where(index[..., None] > 0, 0.5 * rgb + 0.5 * palette[index], rgb)
