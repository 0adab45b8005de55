"""A 2D model on a volume, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import AXIAL, SliceView
from medseg.errors import ModelError, error_message
from medseg.labels.instances import Instances
from medseg.models.base import Criterion, Model


class FoundInstances(Protocol):
    """The instances that an instance model finds in one image.

    Attributes:
        masks: Masks (m x y) bool.
        classes: Class indices (m), from 1.
        scores: Scores (m).
    """

    @property
    def masks(self) -> Tensor: ...  # noqa: D102
    @property
    def classes(self) -> Tensor: ...  # noqa: D102
    @property
    def scores(self) -> Tensor: ...  # noqa: D102


class SliceWise(Model):
    """A 2D model applied to every slice of a volume: (n c x y z) to (n k x y z).

    Args:
        model: Model with 2 spatial axes.
        view: Axis across the slices, their channels and their orientation. The default gives the model axial slices of a
            volume in RAS+, unchanged.
        batch_size: Number of slices that the model sees at once; None for all of them.

    Raises:
        ModelError: The model is not 2D, its number of input channels is not that of the view's slices, or
            `batch_size` is below 1.

    Examples:
        >>> import torch
        >>> import medseg
        >>> model = medseg.build_model("unet_2d", in_channels=1, num_classes=3, channels=[4, 8]).eval()
        >>> SliceWise(model)(torch.zeros(1, 1, 16, 14, 5)).shape
        torch.Size([1, 3, 16, 14, 5])
    """

    def __init__(
        self,
        model: Model,
        view: SliceView = AXIAL,
        *,
        batch_size: int | None = 16,
    ) -> None:
        if model.spatial_dims != 2:
            fix = "Use a 3D model directly"
            raise ModelError(
                error_message("SliceWise", "spatial_dims", found=model.spatial_dims, expected=2, fix=fix)
            )
        if batch_size is not None and batch_size < 1:
            fix = "Use None for all slices at once"
            raise ModelError(
                error_message("SliceWise", "batch_size", found=batch_size, expected="at least 1", fix=fix)
            )
        divisor = list(model.divisor)
        if view.radiological_view is not None and view.radiological_view.swapped:
            divisor.reverse()
        divisor.insert(view.axis, 1)
        super().__init__(
            spatial_dims=3,
            in_channels=_volume_channels(model.in_channels, view.settings),
            num_classes=model.num_classes,
            divisor=tuple(divisor),
        )
        self.model = model
        self.computes_own_losses = model.computes_own_losses
        self.view = view
        self.batch_size = batch_size

    @property
    def axis(self) -> int:
        """The array axis across the slices."""
        return self.view.axis

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
        slices = self.view.images(image)
        parts = slices.split(self.batch_size or len(slices))
        return self.view.volume(torch.cat([self.model(part) for part in parts]), count=len(image))

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of the 2D model, averaged over the slices.

        Args:
            image: Volumes (n c x y z).
            label: Class indices (n 1 x y z), int64.
            instances: None, or an instance map (n 1 x y z) for an instance model; each instance of the volume is one
                instance in every slice that it crosses.

        Returns:
            The losses by name.

        Raises:
            ModelError: No criterion is set, or shapes do not fit.
        """
        self.check_image(image)
        self.check_label(image, label, instances)
        maps = [label] if instances is None else [label, instances]
        slices = self.view.images(image)
        size = self.batch_size or len(slices)
        inputs = [slices, *(self.view.maps(one) for one in maps)]
        total: dict[str, Tensor] = {}
        for parts in zip(*(one.split(size) for one in inputs), strict=True):
            share = len(parts[0]) / len(slices)
            for name, loss in self.model.losses(*parts).items():
                total[name] = total[name] + loss * share if name in total else loss * share
        return total

    @torch.no_grad()
    def slice_instances(self, image: Tensor) -> list[Instances]:
        """Return the instances of every slice of one volume.

        Args:
            image: One volume (1 c x y z).

        Returns:
            One entry per slice, in order, on the axes of the slices.

        Raises:
            ModelError: The 2D model is not an instance model, or there is more than one volume.
        """
        self.check_image(image)
        find = getattr(self.model, "instances", None)
        if find is None:
            fix = "Use an instance model, such as one of mask_rcnn*"
            raise ModelError(error_message(type(self.model).__name__, "finds no instances", fix=fix))
        if len(image) != 1:
            fix = "Give one volume at a time"
            raise ModelError(error_message("SliceWise", "volumes", found=len(image), expected=1, fix=fix))
        slices = self.view.images(image)
        found: list[Instances] = []
        for part in slices.split(self.batch_size or len(slices)):
            found += [one if isinstance(one, Instances) else _in_memory(one) for one in _found(find, part)]
        turn = self.view.radiological_view
        return found if turn is None else [turn.instances_back(one) for one in found]


def _found(find: object, part: Tensor) -> Sequence[FoundInstances | Instances]:
    assert callable(find)
    result: Sequence[FoundInstances | Instances] = find(part)
    return result


def _in_memory(found: FoundInstances) -> Instances:
    return Instances.from_masks(
        found.masks.cpu().numpy(), found.classes.cpu().numpy(), found.scores.float().cpu().numpy()
    )


def _volume_channels(in_channels: int, settings: SliceSettings) -> int:
    """Return the number of channels of the volume from which `in_channels` are computed."""
    volume = in_channels // settings.thickness if settings.channels in ("as_is", "neighbours") else 1
    if settings.num_channels(volume) != in_channels:
        fix = "Build the model for the channels that the slices have"
        expected = f"{settings.num_channels(volume)} for slices.channels={settings.channels}"
        raise ModelError(
            error_message("SliceWise", "channels of the model", found=in_channels, expected=expected, fix=fix)
        )
    return volume
