"""A 2D model on a volume, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medseg.data.slices2d.radiological_view import RadiologicalView
from medseg.data.slices2d.slice_channels import SliceChannels
from medseg.errors import ModelError, error_message
from medseg.labels.instances import Instances
from medseg.models.base import Criterion, Model


class FoundInstances(Protocol):
    """What an instance model finds in one image.

    Attributes:
        masks: (m x y) bool. classes: (m) from 1. scores: (m).
    """

    @property
    def masks(self) -> Tensor: ...  # noqa: D102
    @property
    def classes(self) -> Tensor: ...  # noqa: D102
    @property
    def scores(self) -> Tensor: ...  # noqa: D102


class SliceWise(Model):
    """Runs a 2D model on every slice of a volume: (n c x y z) to (n k x y z).

    Args:
        model: a model of 2 spatial axes.
        axis: the array axis that is cut, 0, 1 or 2; 2 gives axial slices of a volume in RAS+.
        batch_size: number of slices that the model sees at once; None for all of them.
        channels: how the model's channels are made of the volume's; they are the same unless given.
        display: how slices are turned before the model, and its logits turned back; not at all unless given.

    Raises:
        ModelError: the model is not 2D, or `axis` or `batch_size` are out of range.
    """

    def __init__(
        self,
        model: Model,
        *,
        axis: int = 2,
        batch_size: int | None = 16,
        channels: SliceChannels | None = None,
        display: RadiologicalView | None = None,
    ) -> None:
        if model.spatial_dims != 2:
            fix = "Use a 3D model as it is"
            raise ModelError(
                error_message("SliceWise", "spatial_dims", found=model.spatial_dims, expected=2, fix=fix)
            )
        if axis not in (0, 1, 2):
            fix = "Choose the array axis to cut"
            raise ModelError(error_message("SliceWise", "axis", found=axis, expected="0, 1 or 2", fix=fix))
        if batch_size is not None and batch_size < 1:
            fix = "Use None for all slices at once"
            raise ModelError(
                error_message("SliceWise", "batch_size", found=batch_size, expected="at least 1", fix=fix)
            )
        divisor = list(model.divisor)
        if display is not None and display.swapped:
            divisor.reverse()
        divisor.insert(axis, 1)
        super().__init__(
            spatial_dims=3,
            in_channels=_volume_channels(model.in_channels, channels),
            num_classes=model.num_classes,
            divisor=tuple(divisor),
        )
        self.model = model
        self.computes_own_losses = model.computes_own_losses
        self.axis = axis
        self.batch_size = batch_size
        self.channels = channels
        self.display = display

    @property
    def criterion(self) -> Criterion | None:
        """The criterion of the 2D model; it sees batches of slices."""
        return self.model.criterion

    @criterion.setter
    def criterion(self, criterion: Criterion | None) -> None:
        self.model.criterion = criterion

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k x y z) of a volume (n c x y z)."""
        self.check_image(image)
        slices = self._images(image)
        parts = slices.split(self.batch_size or len(slices))
        logits = torch.cat([self.model(part) for part in parts])
        if self.display is not None:
            logits = self.display.turn_back(logits)
        n, depth = image.shape[0], image.shape[2 + self.axis]
        volume = logits.reshape(n, depth, *logits.shape[1:])
        return volume.movedim(1, 2 + self.axis)

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of the 2D model, averaged over the slices.

        Args:
            image: (n c x y z).
            label: class indices (n 1 x y z), int64.
            instances: None, or an instance map (n 1 x y z) for a model that learns from one; an object of a volume is
                one in each of its slices.

        Raises:
            ModelError: no criterion is set, or shapes do not fit.
        """
        self.check_image(image)
        self.check_label(image, label, instances)
        maps = [label] if instances is None else [label, instances]
        slices = self._images(image)
        size = self.batch_size or len(slices)
        inputs = [slices, *(self._turned(self._slices(one)) for one in maps)]
        total: dict[str, Tensor] = {}
        for parts in zip(*(one.split(size) for one in inputs), strict=True):
            share = len(parts[0]) / len(slices)
            for name, loss in self.model.losses(*parts).items():
                total[name] = total[name] + loss * share if name in total else loss * share
        return total

    @torch.no_grad()
    def slice_instances(self, image: Tensor) -> list[Instances]:
        """Return the instances of every slice of one volume (1 c x y z), in order, on the slices' own axes.

        Raises:
            ModelError: the 2D model finds no instances, or there is more than one volume.
        """
        self.check_image(image)
        find = getattr(self.model, "instances", None)
        if find is None:
            fix = "Use an instance model, such as one of mask_rcnn*"
            raise ModelError(error_message(type(self.model).__name__, "finds no instances", fix=fix))
        if len(image) != 1:
            fix = "Give one volume at a time"
            raise ModelError(error_message("SliceWise", "volumes", found=len(image), expected=1, fix=fix))
        slices = self._images(image)
        found: list[Instances] = []
        for part in slices.split(self.batch_size or len(slices)):
            found += [_in_memory(one) for one in _found(find, part)]
        return found if self.display is None else [self.display.instances_back(one) for one in found]

    def _images(self, volume: Tensor) -> Tensor:
        """The images (n·slices k a b) that the 2D model sees of a volume (n c x y z)."""
        if self.channels is not None:
            volume = self.channels.from_volume(volume)
        return self._turned(self._slices(volume))

    def _turned(self, slices: Tensor) -> Tensor:
        return slices if self.display is None else self.display.turn(slices).contiguous()

    def _slices(self, volume: Tensor) -> Tensor:
        """Move the cut axis of (n c x y z) into the batch: (n·slices c, *the two other axes)."""
        return volume.movedim(2 + self.axis, 1).flatten(0, 1)


def _found(find: object, part: Tensor) -> Sequence[FoundInstances]:
    assert callable(find)
    result: Sequence[FoundInstances] = find(part)
    return result


def _in_memory(found: FoundInstances) -> Instances:
    return Instances.from_masks(
        found.masks.cpu().numpy(), found.classes.cpu().numpy(), found.scores.float().cpu().numpy()
    )


def _volume_channels(in_channels: int, channels: SliceChannels | None) -> int:
    """Channels of the volume of which `in_channels` are made."""
    if channels is None:
        return in_channels
    settings = channels.settings
    volume = in_channels // settings.thickness if settings.channels in ("as_is", "neighbours") else 1
    if settings.num_channels(volume) != in_channels:
        fix = "Build the model for the channels that the slices have"
        expected = f"{settings.num_channels(volume)} for slices.channels={settings.channels}"
        raise ModelError(
            error_message("SliceWise", "channels of the model", found=in_channels, expected=expected, fix=fix)
        )
    return volume
