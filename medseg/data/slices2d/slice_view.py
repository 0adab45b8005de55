"""How a 2D model sees the slices of a prepared volume: their axis, their channels and their orientation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.slices2d.radiological_view import RadiologicalView
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class SliceView:
    """The view of a 2D model on volumes, the same in training and in prediction.

    Attributes:
        settings: Channels, orientation and planes that the model was configured with.
        axis: Array axis across the slices: 0, 1 or 2. In RAS volumes, 2 gives axial slices.
        orientation: Axis codes of the prepared volumes; None if they keep the axes of their files.
        hounsfield: Factor and offset from prepared intensities to HU, used by ``ct_windows``.

    Raises:
        DataError: `axis` is not 0, 1 or 2.

    Examples:
        >>> import torch
        >>> from medseg.data.slices2d.slice_settings import SliceSettings
        >>> view = SliceView(SliceSettings(channels="neighbours"), axis=2)
        >>> tuple(view.images(torch.zeros(1, 1, 64, 48, 20)).shape)  # 20 slices with three channels each
        (20, 3, 64, 48)
    """

    settings: SliceSettings = field(default_factory=SliceSettings)
    axis: int = 2
    orientation: str | None = "RAS"
    hounsfield: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise DataError(
                f"axis: found {self.axis}, expected 0, 1 or 2. Choose the array axis across the slices."
            )

    @classmethod
    def from_preprocessing(cls, settings: SliceSettings, axis: int, preprocessing: Preprocessing) -> Self:
        """Return the view on volumes that were prepared with `preprocessing`.

        Args:
            settings: Settings of the experiment or the model folder.
            axis: Array axis across the slices.
            preprocessing: Resolved preprocessing, which defines the orientation and the meaning of intensities.

        Returns:
            The view across `axis`.

        Raises:
            ConfigError: The intensities do not contain the CT windows, or the orientation needed for
                `radiological_view` is unknown.
        """
        if settings.radiological_view and not preprocessing.orientation:
            raise ConfigError(
                "slices.radiological_view: found preprocess.orientation null, expected axis codes. Set it to RAS, for example."
            )
        return cls(settings, axis, preprocessing.orientation, settings.hounsfield(preprocessing))

    @property
    def planes(self) -> tuple[SliceView, ...]:
        """The views across every axis on which predictions are averaged."""
        return tuple(replace(self, axis=axis) for axis in self.settings.planes or (self.axis,))

    def of_image(self, values: Sequence[T]) -> tuple[T, ...]:
        """Return the values of the two axes of an image that the model sees.

        Args:
            values: One value per axis of the volume.

        Returns:
            Two values in the order of the axes of the image.
        """
        seen = [value for axis, value in enumerate(values) if axis != self.axis]
        turn = self.radiological_view
        return tuple(reversed(seen) if turn is not None and turn.swapped else seen)

    @cached_property
    def radiological_view(self) -> RadiologicalView | None:
        """The reorientation of slices to images; None if slices keep their axes."""
        if not self.settings.radiological_view:
            return None
        if not self.orientation:
            raise ConfigError(
                "slices.radiological_view: found volumes of unknown orientation. Switch it off."
            )
        return RadiologicalView.from_orientation(self.axis, self.orientation)

    def patch_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of the array to read for a patch of one slice.

        Args:
            size: Voxels of the patch per axis; 1 across the slices.

        Returns:
            The same size, with the neighbouring slices on both sides included if they are channels.
        """
        thickness = self.settings.thickness
        return tuple(thickness if axis == self.axis else length for axis, length in enumerate(size))

    def images(self, volume: Tensor) -> Tensor:
        """Return the images `(n·slices k rows columns)` that the model sees of prepared volumes `(n c x y z)`."""
        return self.maps(self.channels_of_volume(volume))

    def maps(self, volume: Tensor) -> Tensor:
        """Return slices `(n·slices c rows columns)` of label maps `(n c x y z)`, turned like the images."""
        slices = volume.movedim(2 + self.axis, 1).flatten(0, 1)
        return slices if self.radiological_view is None else self.radiological_view.turn(slices).contiguous()

    def volume(self, images: Tensor, count: int) -> Tensor:
        """Return `count` volumes `(n k x y z)` assembled from the logits of all their images, in order."""
        slices = images if self.radiological_view is None else self.radiological_view.turn_back(images)
        volume = slices.reshape(count, -1, *slices.shape[1:])
        return volume.movedim(1, 2 + self.axis)

    def channels_of_volume(self, volume: Tensor) -> Tensor:
        """Return volumes `(n k x y z)` in which each slice holds the channels that the model sees.

        Neighbouring slices are adjacent for each channel: ``c0 below, c0, c0 above, c1 below, ...``. Beyond the first
        and the last slice they are 0.
        """
        if self.settings.channels != "neighbours":
            return self.channels_of_values(volume)
        import torch

        radius, along = self.settings.neighbours, 2 + self.axis
        empty = torch.zeros_like(volume.narrow(along, 0, 1)).expand(
            *volume.shape[:along], radius, *volume.shape[along + 1 :]
        )
        padded = torch.cat([empty, volume, empty], dim=along)
        depth = volume.shape[along]
        shifted = [padded.narrow(along, start, depth) for start in range(2 * radius + 1)]
        return torch.stack(shifted, dim=2).flatten(1, 2)

    def channels_of_thick_slice(self, patch: Tensor) -> Tensor:
        """Return the channels of the middle slice of a patch.

        Args:
            patch: `(c x y z)`, with `SliceSettings.thickness` slices.

        Returns:
            `(k a b)`, on the axes of the slice.

        Raises:
            DataError: The patch does not have `SliceSettings.thickness` slices.
        """
        found, expected = patch.shape[1 + self.axis], self.settings.thickness
        if found != expected:
            raise DataError(
                f"patch: found {found} slices, expected {expected}. Read a patch of `patch_size`."
            )
        return self.channels_of_values(patch.movedim(1 + self.axis, 1).flatten(0, 1)[None])[0]

    def channels_of_values(self, images: Tensor) -> Tensor:
        """Return `(n k *spatial)` for images `(n c *spatial)`: the channels that are computed voxel by voxel."""
        if self.settings.channels == "repeat":
            return images.expand(-1, self.settings.repeats, *images.shape[2:])
        if self.settings.channels != "ct_windows":
            return images
        import torch

        factor, offset = self.hounsfield
        units = images * factor + offset
        shown = [((units - level) / width + 0.5).clamp(0, 1) for level, width in self.settings.ct_windows]
        return torch.cat(shown, dim=1)


AXIAL = SliceView()
"""The axial slices of RAS volumes, unchanged."""
