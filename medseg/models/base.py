"""The base class of all models: images in, class logits on the same grid out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.labels.label_sets import LabelSets
from medseg.runtime.distributed import world_size

Criterion = Callable[[Tensor, Tensor], Tensor]
"""A function of float32 logits (n k *spatial) and an integer label map (n 1 *spatial) that returns a scalar.

Some take probabilities (n k *spatial) in the place of the label map."""


@dataclass(frozen=True)
class LoadedWeights:
    """The result of loading pretrained weights; ``str`` returns it as one sentence.

    Attributes:
        source: Source of the weights, as written in the options.
        loaded: Names of the model's tensors that were loaded.
        adapted: Names of the loaded tensors that were converted first: kernels to another number of channels, position tables to
            another image size.
        fresh: Names of the model's tensors that keep their initial weights.
        unused: Names of the source's tensors that the model does not use.

    Examples:
        >>> from medseg.models import LoadedWeights
        >>> print(LoadedWeights("net.pth", ("a", "b"), (), ("head.weight",), ()))
        net.pth: 2 tensors loaded; 1 left fresh (head.weight).
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
    """The base class of models that map images (n c *spatial) to class logits (n k *spatial) on the same grid.

    A subclass implements `forward`. Models that predict instances or queries also override `losses` and provide
    ``instances(image)``, which returns `Detections` or `medseg.labels.instances.Instances` per image. Models that compute
    probabilities return their logarithm.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        divisor: Sizes that are multiples of it need no padding, one number per spatial axis; None for all 1.

    Attributes:
        int8_folder: Folder with the 8-bit form of the network, as `medseg quantize` adds it to a model folder; None without.
        pretrained_part: Name of the submodule filled by published backbone weights; None for models without one.
        layer_prefixes: Prefixes of the names of parameters in the order of computation, without the heads, for learning rates by layer;
            empty if the order is not known.
        computes_own_losses: Whether `losses` ignores the criterion, as in models of instances and queries.
        voxel_size: Voxel size in mm of the training images, for models whose losses measure distances; None for others.
        learns_label_sets: Whether a model that computes its own losses learns from voxels that may belong to several classes.
        label_sets: Meaning of the label values that such a model learns from; None if each value is a class.

    Examples:
        >>> import torch
        >>> from medseg.models import Model
        >>> class Threshold(Model):
        ...     def forward(self, image):
        ...         return torch.cat([0.5 - image, image - 0.5], dim=1)
        >>> model = Threshold(spatial_dims=2, in_channels=1, num_classes=2)
        >>> model(torch.rand(1, 1, 5, 5)).shape
        torch.Size([1, 2, 5, 5])
    """

    spatial_dims: int
    in_channels: int
    num_classes: int
    divisor: tuple[int, ...]
    criterion: Criterion | None = None
    loaded_weights: LoadedWeights | None = None
    int8_folder: Path | None = None
    pretrained_part: str | None = None
    layer_prefixes: tuple[str, ...] = ()
    computes_own_losses: bool = False
    voxel_size: tuple[float, ...] | None = None
    learns_label_sets: bool = False
    label_sets: LabelSets | None = None

    def __init__(
        self, *, spatial_dims: int, in_channels: int, num_classes: int, divisor: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.divisor = divisor or (1,) * spatial_dims

    def __setattr__(self, name: str, value: Any) -> None:
        # The criterion belongs to training. As a submodule, its buffers would be saved with the weights; instead it is
        # neither in the state dict nor moved by `.to(device)`.
        if name == "criterion":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k *spatial) of an image (n c *spatial)."""
        raise NotImplementedError

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return named scalar losses; training minimises their sum.

        Args:
            image: Images (n c *spatial).
            label: Class indices (n 1 *spatial), int64, or probabilities (n k *spatial) if the criterion handles them.
            instances: Instance maps (n 1 *spatial), int64, for models that predict instances: 0 where there is none, and
                a different number for each instance of an image. Other models ignore them.

        Returns:
            The losses by name.

        Raises:
            ModelError: No criterion is set, or shapes do not fit.
        """
        criterion = self.require_criterion()
        self.check_label(image, label)
        return {"loss": criterion(self(image).float(), label)}

    def require_criterion(self) -> Criterion:
        """Return the criterion, or raise `ModelError` if none is set."""
        if self.criterion is None:
            fix = "Set model.criterion to a function of (logits, label)"
            raise ModelError(
                error_message(type(self).__name__, "no criterion is set, so there is no loss", fix=fix)
            )
        return self.criterion

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` unless the image is floating point, not empty, and has the model's axes and channels."""
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
            fix = "Check the crop that produced this image"
            raise ModelError(
                error_message(name, "image is empty", found=shape, expected="sizes of at least 1", fix=fix)
            )
        if not image.is_floating_point():
            fix = "Convert it with image.float()"
            raise ModelError(
                error_message(name, "image type", found=image.dtype, expected="a floating type", fix=fix)
            )

    def check_label(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> None:
        """Raise `ModelError` unless `label` and `instances` are (n 1 *spatial) on the grid of `image` (n c *spatial).

        A label of floating point holds probabilities (n k *spatial).
        """
        soft = label.is_floating_point() and not self.computes_own_losses
        for what, given, channels in (
            ("label", label, self.num_classes if soft else 1),
            ("instance map", instances, 1),
        ):
            expected = (image.shape[0], channels, *image.shape[2:])
            if given is not None and tuple(given.shape) != expected:
                fix = (
                    "Give one probability per class"
                    if channels > 1
                    else "Give whole numbers with one channel on the image's grid"
                )
                name, found = type(self).__name__, tuple(given.shape)
                raise ModelError(
                    error_message(name, f"{what} shape", found=found, expected=expected, fix=fix)
                )

    def require_several_values(self, image: Tensor, stride: int) -> None:
        """Raise `ModelError` if a batch norm would see a single value per channel in training.

        Args:
            image: Images (n c *spatial).
            stride: Stride of the deepest map with a batch norm.
        """
        n, _, *size = image.shape
        # In distributed training, batch norm uses the images of all ranks.
        n *= world_size()
        if self.training and n * prod(-(-length // stride) for length in size) == 1:
            what = "a batch norm would see a single value on the deepest map: image size"
            expected = f"more than {stride} along an axis, or a batch of 2"
            fix = "Use a larger patch or batch"
            raise ModelError(
                error_message(type(self).__name__, what, found=tuple(size), expected=expected, fix=fix)
            )


def autocast_disabled(image: Tensor) -> AbstractContextManager[None]:
    """Return a context without automatic mixed precision, for boxes, matching and sums of probabilities."""
    if image.is_meta:  # the meta device has no mixed precision
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(image.device.type, enabled=False)
    return context
