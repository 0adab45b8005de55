"""The channels that a 2-D model sees, made of a prepared volume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import DataError


@dataclass(frozen=True)
class SliceChannels:
    """Makes the channels of slices, in training and in prediction alike.

    Attributes:
        settings: which channels.
        axis: array axis across the slices, 0, 1 or 2.
        factor, offset: from the volume's values to Hounsfield units, for CT windows.
    """

    settings: SliceSettings
    axis: int = 2
    factor: float = 1.0
    offset: float = 0.0

    def from_volume(self, volume: Tensor) -> Tensor:
        """Channels `(n k x y z)` of a prepared volume `(n c x y z)`, so that each slice holds what the model sees.

        Neighbouring slices lie beside each other for each channel: ``c0 below, c0, c0 above, c1 below, ...``.
        """
        if self.settings.channels != "neighbours":
            return self.from_values(volume)
        radius, along = self.settings.neighbours, 2 + self.axis
        empty = torch.zeros_like(volume.narrow(along, 0, 1)).expand(
            *volume.shape[:along], radius, *volume.shape[along + 1 :]
        )
        padded = torch.cat([empty, volume, empty], dim=along)
        depth = volume.shape[along]
        shifted = [padded.narrow(along, start, depth) for start in range(2 * radius + 1)]
        return torch.stack(shifted, dim=2).flatten(1, 2)

    def from_thick_slice(self, patch: Tensor) -> Tensor:
        """Channels `(k a b)` of the middle slice of a patch `(c x y z)` that is `thickness` slices thick.

        Raises:
            DataError: another thickness.
        """
        if patch.shape[1 + self.axis] != self.settings.thickness:
            raise DataError(
                f"patch: found {patch.shape[1 + self.axis]} slices, expected {self.settings.thickness}. Cut it anew."
            )
        return self.from_values(patch.movedim(1 + self.axis, 1).flatten(0, 1)[None])[0]

    def from_values(self, images: Tensor) -> Tensor:
        """Channels `(n k *spatial)` of images `(n c *spatial)` as far as they are made voxel by voxel."""
        if self.settings.channels == "repeat":
            return images.expand(-1, self.settings.repeats, *images.shape[2:])
        if self.settings.channels != "ct_windows":
            return images
        units = images * self.factor + self.offset
        shown = [((units - level) / width + 0.5).clamp(0, 1) for level, width in self.settings.ct_windows]
        return torch.cat(shown, dim=1)


def slice_channels(slices: SliceSettings, axis: int, preprocessing: Preprocessing) -> SliceChannels | None:
    """How channels are made for slices across `axis`; None where they stay as they are.

    Raises:
        ConfigError: the intensities do not give the CT windows.
    """
    if slices.channels == "as_is":
        return None
    return SliceChannels(slices, axis, *slices.hounsfield(preprocessing))
