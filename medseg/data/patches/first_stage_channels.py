"""The label map of an earlier stage as channels of a later one, a cascade (nnU-Net, Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.data.patches.perturb_first_stage import perturb
from medseg.data.settings import FirstStageAugmentation


def append_one_hot(images: Tensor, labels: int) -> Tensor:
    """Images whose last channel holds class indices, with a channel for each foreground class in its place.

    Args:
        images: `(n, c + 1, *spatial)` floating.
        labels: number of foreground classes.

    Returns:
        `(n, c + labels, *spatial)`: the other channels as they are, then 1 where the class is 1, 2, ... and 0 elsewhere.
    """
    classes = torch.arange(1, labels + 1, device=images.device, dtype=images.dtype)
    indicators = images[:, -1:] == classes.view(1, -1, *[1] * (images.dim() - 2))
    return torch.cat([images[:, :-1], indicators.to(images.dtype)], dim=1)


@dataclass(frozen=True)
class FirstStageChannels:
    """What becomes of an earlier stage's label map in a training patch.

    Attributes:
        labels: number of its foreground labels.
        augmentation: how it is spoiled, or None for not at all.
    """

    labels: int
    augmentation: FirstStageAugmentation | None = None

    def appended(self, image: Tensor, classes: Tensor, rng: np.random.Generator) -> Tensor:
        """The image `(c, *spatial)` with a channel for each label of class indices `(1, *spatial)`."""
        if self.augmentation is not None:
            changed = classes[0].numpy().astype(np.uint8 if self.labels < 256 else np.uint16)
            perturb(changed, self.augmentation, rng)
            classes = torch.from_numpy(changed.astype(np.int32))[None]
        return append_one_hot(torch.cat([image, classes.to(image.dtype)])[None], self.labels)[0]
