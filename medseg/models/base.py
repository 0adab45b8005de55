"""What every model promises: images in, class logits out, on the same grid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.runtime.distributed import world_size

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Takes float32 logits (n k *spatial) and an integer label map (n 1 *spatial); returns a scalar."""


@dataclass(frozen=True)
class LoadedWeights:
    """What became of pretrained weights; printing it gives one sentence.

    Args:
        source: as it was written in the options.
        loaded: names of our tensors that were filled.
        adapted: those among them that had to be changed: kernels for other channels, position tables.
        fresh: names of our tensors that keep their fresh values.
        unused: names of the source's tensors that have no place in the model.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for what, names in (("adapted", self.adapted), ("left fresh", self.fresh), ("not used", self.unused)):
            if names:
                more = ", …" if len(names) > 3 else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{more})")
        return "; ".join(parts) + "."


class Model(nn.Module):
    """Maps images (n c *spatial) to class logits (n k *spatial) on the same grid.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: classes, background counted.
        divisor: sizes that are multiples of it need no padding; one per spatial axis, all 1 when None.

    ``pretrained_part`` names the submodule that published weights of a backbone fill; None for models without one.
    ``computes_own_losses`` says that `losses` looks at no criterion, as models do that find objects: they learn the classes of
    voxels that all are known.
    """

    spatial_dims: int
    in_channels: int
    num_classes: int
    divisor: tuple[int, ...]
    criterion: Criterion | None = None
    loaded_weights: LoadedWeights | None = None
    pretrained_part: str | None = None
    computes_own_losses: bool = False

    def __init__(
        self, *, spatial_dims: int, in_channels: int, num_classes: int, divisor: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.divisor = divisor or (1,) * spatial_dims

    def __setattr__(self, name: str, value: Any) -> None:
        # The criterion belongs to training: were it registered as a submodule, the buffers of a loss would be
        # saved with the weights. So it is neither in the state dict nor moved by `.to(device)`.
        if name == "criterion":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k *spatial) of an image (n c *spatial)."""
        raise NotImplementedError

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return named scalars whose sum is to be minimised.

        Args:
            image: (n c *spatial).
            label: class indices (n 1 *spatial), int64.
            instances: an instance map (n 1 *spatial), int64, for models that find objects: 0 where there is
                none, and another number for each object of an image. Dense models have no use for it.

        Raises:
            ModelError: no criterion is set, or shapes do not fit.
        """
        criterion = self.require_criterion()
        self.check_label(image, label)
        return {"loss": criterion(self(image).float(), label)}

    def require_criterion(self) -> Criterion:
        """Return the criterion, or raise `ModelError` when none is set."""
        if self.criterion is None:
            fix = "Set model.criterion to a function of (logits, label)"
            raise ModelError(
                error_message(type(self).__name__, "no criterion is set, so there is no loss", fix=fix)
            )
        return self.criterion

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` unless `image` is floating, has the model's axes and channels, and is not empty."""
        name, shape = type(self).__name__, tuple(image.shape)
        axes = "(n c x y)" if self.spatial_dims == 2 else "(n c x y z)"
        if image.dim() != self.spatial_dims + 2:
            fix = "Add the batch and channel axes, or choose a model of the image's dimensions"
            raise ModelError(error_message(name, "image shape", found=shape, expected=axes, fix=fix))
        if shape[1] != self.in_channels:
            fix = f"Build the model with in_channels={shape[1]}, or give it {self.in_channels}"
            raise ModelError(
                error_message(name, "image channels", found=shape[1], expected=self.in_channels, fix=fix)
            )
        if 0 in shape[2:]:
            fix = "Check the crop that made this image"
            raise ModelError(
                error_message(name, "image is empty", found=shape, expected="sizes of at least 1", fix=fix)
            )
        if not image.is_floating_point():
            fix = "Convert it with image.float()"
            raise ModelError(
                error_message(name, "image type", found=image.dtype, expected="a floating type", fix=fix)
            )

    def check_label(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> None:
        """Raise `ModelError` unless `label` and `instances` are (n 1 *spatial) on the grid of `image` (n c *spatial)."""
        expected = (image.shape[0], 1, *image.shape[2:])
        for what, given in (("label", label), ("instance map", instances)):
            if given is not None and tuple(given.shape) != expected:
                fix = "Give whole numbers with one channel on the image's grid"
                name, found = type(self).__name__, tuple(given.shape)
                raise ModelError(
                    error_message(name, f"{what} shape", found=found, expected=expected, fix=fix)
                )

    def require_several_values(self, image: Tensor, stride: int) -> None:
        """Raise `ModelError` where a batch norm would see a single value per channel while training.

        Args:
            image: (n c *spatial).
            stride: of the deepest map that has a batch norm.
        """
        n, _, *size = image.shape
        # The batch norms of several processes look at the images of all.
        n *= world_size()
        if self.training and n * prod(-(-length // stride) for length in size) == 1:
            what = "a batch norm would see a single value on the deepest map: image size"
            expected = f"more than {stride} along an axis, or a batch of 2"
            fix = "Use a larger patch or batch"
            raise ModelError(
                error_message(type(self).__name__, what, found=tuple(size), expected=expected, fix=fix)
            )


def autocast_disabled(image: Tensor) -> AbstractContextManager[None]:
    """Leave automatic mixed precision for what it would spoil: boxes, matching, sums of probabilities."""
    if image.is_meta:  # knows no mixed precision
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(image.device.type, enabled=False)
    return context
