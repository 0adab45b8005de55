"""Networks that find different labels in the same image, as one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.models.base import Model


class PartNetworks(Model):
    """A model that returns the logits of several networks one after the other.

    Each network has a background of its own, so its outputs are one part of the channels of the result. How they become one
    label map is decided by `medseg.inference.part_labels.PartsArgmax`.

    Args:
        members: Networks with one input channel each and the same axes and divisor.
        channels: The channel of the image that each network sees.

    Raises:
        ModelError: There are no networks, or they differ in their axes or channels.
    """

    def __init__(self, members: Sequence[Model], channels: Sequence[int]) -> None:
        kinds = {(one.spatial_dims, one.in_channels, one.divisor) for one in members}
        if len(kinds) != 1 or len(members) != len(channels) or members[0].in_channels != 1:
            fix = "Give networks of one architecture with one channel"
            found = f"{len(kinds)} kinds of networks for {len(channels)} channels"
            raise ModelError(
                error_message(
                    "PartNetworks", "members", found=found, expected="one kind, one channel each", fix=fix
                )
            )
        super().__init__(
            spatial_dims=members[0].spatial_dims,
            in_channels=max(channels) + 1,
            num_classes=sum(one.num_classes for one in members),
            divisor=members[0].divisor,
        )
        self.members = nn.ModuleList(members)
        self.channels = tuple(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k *spatial) of all networks, in their order, of an image (n c *spatial)."""
        found = [
            member(image[:, channel : channel + 1])
            for member, channel in zip(self.members, self.channels, strict=True)
        ]
        return torch.cat(found, dim=1)
