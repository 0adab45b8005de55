"""An ensemble of networks as one model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.models.base import Model


class LogitEnsemble(Model):
    """An ensemble that averages the logits of networks that differ only in their weights, such as those of all folds.

    Sliding windows and mirroring are linear in the logits, so this equals averaging the members' complete predictions
    (nnU-Net, Isensee et al. 2021) but needs the memory of only one prediction.

    Args:
        members: Models with the same axes, channels and classes.

    Raises:
        ModelError: There are no members, or they differ.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        kinds = {(m.spatial_dims, m.in_channels, m.num_classes, m.divisor) for m in members}
        if len(kinds) != 1:
            fix = "Give models of one architecture"
            raise ModelError(
                error_message(
                    "LogitEnsemble", "members", found=f"{len(kinds)} kinds of models", expected="one", fix=fix
                )
            )
        ((spatial_dims, in_channels, num_classes, divisor),) = kinds
        super().__init__(
            spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes, divisor=divisor
        )
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Return the mean logits (n k *spatial), in float32, of an image (n c *spatial)."""
        first, *others = self.members
        total: Tensor = first(image).float()
        for member in others:
            total = total + member(image)
        return total / len(self.members)
