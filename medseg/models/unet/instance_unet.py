"""The instance U-Net: a U-Net that also predicts distances from borders and offsets to centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.labels.instance_votes import DEFAULT_VOTES, VoteDecoder, VoteSettings, VotingSlices
from medseg.labels.instances import Instances
from medseg.models.layers.convs import conv_nd
from medseg.models.unet.blocks import initialise
from medseg.models.unet.centre_targets import centre_targets
from medseg.models.unet.config import InstanceUNetOptions
from medseg.models.unet.network import UNet, block_settings
from medseg.models.unet.network_config import InstanceUNetConfig
from medseg.models.unet.stage import per_axis

OFFSET_UNIT = 8.0
"""Voxels per unit of the head that predicts offsets, so that its outputs are about as large as logits."""
VOTES_OF_SLICES = VoteSettings(smoothing=0.7)
"""The votes in 2D images: instances in images differ in size, and a width for the typical one divides large ones."""
MOMENTUM = 0.05
"""Weight of a batch in the typical length of offsets."""


class InstanceUNet(UNet):
    """A U-Net that finds instances; use `InstanceUNet2d` or `InstanceUNet3d`.

    The logits are those of the classes, so label maps are predicted as with any U-Net. `maps` returns the distances and
    offsets, too, from which `VoteDecoder` finds instances.

    Args:
        config: The architecture.
        spatial_dims: 2 or 3.

    Attributes:
        voxel_size: Voxel size in mm of the training images, in which distances are measured.
        offset_length: Mean length `(1,)` of the offsets in an instance of typical size, in voxels of the finest axis: a moving
            geometric mean over the instances of the training.
    """

    offset_length: Tensor

    def __init__(self, config: InstanceUNetConfig, spatial_dims: int) -> None:
        super().__init__(config, spatial_dims)
        kernel = per_axis(config.final_kernel_size, spatial_dims)
        self.instance_loss_weight = config.instance_loss_weight
        self.voxel_size = (1.0,) * spatial_dims
        # A buffer, so that it is saved with the weights: it is measured in training, like running statistics.
        self.register_buffer("offset_length", torch.full((1,), 4.0))
        self.instance_head = conv_nd(spatial_dims, config.decoder()[-1].channels, 1 + spatial_dims, kernel)
        initialise(self.instance_head, block_settings(config, spatial_dims))

    def maps(self, image: Tensor) -> Tensor:
        """Return everything that the network predicts.

        Args:
            image: Images (n c *spatial).

        Returns:
            Logits of the classes, the relative distance from the border of the instance, and the offset to its centre in
            voxels per axis (n k+1+d *spatial).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        finest, size = self.features(image)[-1], tuple(image.shape[2:])
        return torch.cat([self._logits(finest, size), self._centres(finest, size)], dim=1)

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of the classes as in `UNet`, and those of distances and offsets as in `CentreTargets`.

        Args:
            image: Images (n c *spatial).
            label: Class indices (n 1 *spatial), int64.
            instances: Instance maps (n 1 *spatial); None if the connected components of each class are the instances.

        Returns:
            The losses ``classes``, ``distance`` and ``offsets``.

        Raises:
            ModelError: No criterion is set, or shapes do not fit.
        """
        self.require_criterion()
        self.check_label(image, label, instances)
        maps = self.features(image)
        classes = self._supervised(maps, image, label)
        predicted = self._centres(maps[-1], tuple(image.shape[2:])).float()
        if image.is_meta:
            return {"classes": classes, "centres": predicted.sum()}
        targets = centre_targets(label, instances, num_classes=self.num_classes, spacing=self._spacing)
        self._measure(targets.lengths)
        weight = self.instance_loss_weight
        return {
            "classes": classes,
            **{name: weight * loss for name, loss in targets.losses(predicted).items()},
        }

    @torch.no_grad()
    def instances(self, image: Tensor) -> list[Instances]:
        """Return the instances in each image.

        Args:
            image: Images (n c *spatial).

        Returns:
            One entry per image.

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        found, settings = [], VOTES_OF_SLICES if self.spatial_dims == 2 else DEFAULT_VOTES
        for maps in self.maps(image):
            length = self.typical_length(self._spacing)
            decoder = VoteDecoder(maps.shape[1:], self._spacing, length, settings=settings)
            decoder.add(voting_slices(maps, self.num_classes))
            found.append(decoder.finish())
        return found

    def typical_length(self, spacing: Sequence[float]) -> float:
        """Return the mean length in mm of the offsets in an instance of typical size.

        Args:
            spacing: Voxel size in mm.

        Returns:
            Length in mm.
        """
        return float(self.offset_length) * min(spacing)

    def _measure(self, lengths: Tensor) -> None:
        """Update the typical length by the instances of a batch, lengths (m) in mm."""
        if self.training and len(lengths):
            typical = (lengths / min(self._spacing)).log().mean().exp()
            self.offset_length.mul_(1 - MOMENTUM).add_(MOMENTUM * typical)

    @property
    def _spacing(self) -> tuple[float, ...]:
        return self.voxel_size or (1.0,) * self.spatial_dims

    def _centres(self, finest: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return distance and offsets (n 1+d *spatial) from the map of the shallowest decoder level."""
        distance, offsets = self._on_image(self.instance_head(finest), size).tensor_split([1], dim=1)
        return torch.cat([distance, offsets * OFFSET_UNIT], dim=1)


class InstanceUNet2d(InstanceUNet):
    """Instance U-Net for images (n c x y); see `InstanceUNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import InstanceUNet2d, InstanceUNetConfig
        >>> InstanceUNet2d(InstanceUNetConfig.from_channels(1, 2, channels=(4, 8))).maps(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 5, 16, 16])
    """

    def __init__(self, config: InstanceUNetConfig) -> None:
        super().__init__(config, 2)


class InstanceUNet3d(InstanceUNet):
    """Instance U-Net for volumes (n c x y z); see `InstanceUNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import InstanceUNet3d, InstanceUNetConfig
        >>> InstanceUNet3d(InstanceUNetConfig.from_channels(1, 2, channels=(4, 8))).maps(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 6, 8, 8, 8])
    """

    def __init__(self, config: InstanceUNetConfig) -> None:
        super().__init__(config, 3)


def voting_slices(maps: Tensor, num_classes: int, axes: Sequence[int] | None = None) -> VotingSlices:
    """Return what `InstanceUNet.maps` predicts for slices in the form in which instances are decoded.

    Args:
        maps: Logits, distance and offsets (k+1+d s *rest) of consecutive slices.
        num_classes: Number of classes, background included.
        axes: Axis of the model along which each axis of the slices runs; None if they are the same.

    Returns:
        The slices, in the memory of the host.
    """
    maps = maps.float()
    logits, distance, offsets = maps.tensor_split([num_classes, num_classes + 1])
    if axes is not None:
        offsets = offsets[list(axes)]
    foreground = 1 - logits.softmax(dim=0)[0]
    classes = logits.argmax(dim=0)
    arrays = (tensor.cpu().numpy() for tensor in (classes, foreground, distance[0], offsets))
    return VotingSlices(*arrays)


def build(
    options: InstanceUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> InstanceUNet:
    """Build an instance U-Net with fresh weights."""
    config = InstanceUNetConfig(in_channels=in_channels, out_channels=num_classes, **dict(options))
    return InstanceUNet2d(config) if spatial_dims == 2 else InstanceUNet3d(config)
