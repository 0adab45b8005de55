"""The label map of a first stage as channels of the second one, in a cascade (nnU-Net, Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.data.patches.perturb_first_stage import perturb
from medseg.data.settings import FirstStageAugmentation


def append_one_hot(images: Tensor, labels: int) -> Tensor:
    """Replace the last channel of images, which holds class indices, by one channel per foreground class.

    Args:
        images: `(n, c + 1, *spatial)` floating point.
        labels: Number of foreground classes.

    Returns:
        `(n, c + labels, *spatial)`: the other channels unchanged, then 1 where the class is 1, 2, ... and 0 elsewhere.

    Examples:
        >>> append_one_hot(torch.tensor([[[0.5, 0.6, 0.7], [0.0, 1.0, 2.0]]]), labels=2)[0, 1:]
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """
    classes = torch.arange(1, labels + 1, device=images.device, dtype=images.dtype)
    indicators = images[:, -1:] == classes.view(1, -1, *[1] * (images.dim() - 2))
    return torch.cat([images[:, :-1], indicators.to(images.dtype)], dim=1)


@dataclass(frozen=True)
class FirstStageChannels:
    """The conversion of a first stage's label map into channels of a training patch.

    Attributes:
        labels: Number of foreground labels of the first stage.
        augmentation: Perturbation of the label map, or None for none.
    """

    labels: int
    augmentation: FirstStageAugmentation | None = None

    def perturbed(self, classes: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a label map with random errors, if there is an augmentation.

        Args:
            classes: Class indices `(1, *spatial)` on the processor.
            rng: Generator of the sample.

        Returns:
            Class indices `(1, *spatial)` int32.
        """
        if self.augmentation is None:
            return classes.int()
        changed = classes[0].numpy().astype(np.uint8 if self.labels < 256 else np.uint16)
        perturb(changed, self.augmentation, rng)
        return torch.from_numpy(changed.astype(np.int32))[None]

    def append(self, image: Tensor, classes: Tensor) -> Tensor:
        """Return an image with one channel per label of the first stage.

        Args:
            image: `(c, *spatial)` floating point.
            classes: Class indices `(1, *spatial)` on the same device.

        Returns:
            Image `(c + labels, *spatial)`.
        """
        return append_one_hot(torch.cat([image, classes.to(image.dtype)])[None], self.labels)[0]
