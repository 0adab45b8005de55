"""A 2D model on a volume, across several of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError, error_message
from medseg.models.base import Criterion, Model
from medseg.models.volumetric.slicewise import SliceWise


class MultiPlane(Model):
    """A 2D model applied to slices across several axes (axial, coronal, sagittal), with averaged logits.

    Prasoon et al. 2013 use a network with one branch per plane; here all planes share their weights.

    Args:
        planes: The same 2D model applied slice by slice, once per axis.

    Raises:
        ModelError: There is no plane, or two planes have the same axis.

    Examples:
        >>> import torch
        >>> import medseg
        >>> from medseg.data.slices2d.slice_view import SliceView
        >>> model = medseg.build_model("unet_2d", in_channels=1, num_classes=3, channels=[4, 8]).eval()
        >>> planes = MultiPlane([SliceWise(model, SliceView(axis=axis)) for axis in (0, 2)])
        >>> planes(torch.zeros(1, 1, 16, 14, 8)).shape
        torch.Size([1, 3, 16, 14, 8])
    """

    def __init__(self, planes: Sequence[SliceWise]) -> None:
        axes = [plane.axis for plane in planes]
        if not planes or len(set(axes)) < len(axes):
            fix = "Name each axis once"
            raise ModelError(
                error_message("MultiPlane", "axes", found=axes, expected="at least one, each once", fix=fix)
            )
        first = planes[0]
        super().__init__(
            spatial_dims=3,
            in_channels=first.in_channels,
            num_classes=first.num_classes,
            divisor=tuple(
                math.lcm(*sizes) for sizes in zip(*(plane.divisor for plane in planes), strict=True)
            ),
        )
        self.planes = nn.ModuleList(planes)

    @property
    def criterion(self) -> Criterion | None:
        """The criterion of the 2D model; it sees batches of slices."""
        return self._slicewise()[0].criterion

    @criterion.setter
    def criterion(self, criterion: Criterion | None) -> None:
        for plane in self._slicewise():
            plane.criterion = criterion

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k x y z) of a volume (n c x y z), averaged over the planes."""
        first, *others = self._slicewise()
        total = first(image)
        for plane in others:
            total = total + plane(image)
        mean: Tensor = total / len(self.planes)
        return mean

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of the 2D model, averaged over the planes; see `SliceWise.losses`."""
        each = [plane.losses(image, label, instances) for plane in self._slicewise()]
        return {name: sum((one[name] for one in each[1:]), each[0][name]) / len(each) for name in each[0]}

    def _slicewise(self) -> list[SliceWise]:
        return [plane for plane in self.planes if isinstance(plane, SliceWise)]


def as_volumetric(model: Model, view: SliceView) -> Model:
    """Return a model of volumes: a 3D model unchanged, a 2D one applied slice by slice.

    Args:
        model: Model with 2 or 3 spatial axes.
        view: View of a 2D model; if `view.settings.planes` names several axes, their logits are averaged.

    Returns:
        A model with three spatial axes.

    Raises:
        ModelError: The number of input channels of the 2D model is not that of the view's slices.
    """
    if model.spatial_dims == 3:
        return model
    planes = [SliceWise(model, plane, batch_size=view.settings.batch_size) for plane in view.planes]
    return planes[0] if len(planes) == 1 else MultiPlane(planes)
