"""A 2D model on a volume, slice by slice."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.errors import ModelError, describe
from medseg.models.base import Criterion, Model


class SliceWise(Model):
    """Runs a 2D model on every slice of a volume: (n c x y z) to (n k x y z).

    Args:
        model: a model of 2 spatial axes.
        axis: the array axis that is cut, 0, 1 or 2; 2 gives axial slices of a volume in RAS+.
        batch_size: number of slices that the model sees at once; None for all of them.

    Raises:
        ModelError: the model is not 2D, or `axis` or `batch_size` are out of range.
    """

    def __init__(self, model: Model, *, axis: int = 2, batch_size: int | None = 16) -> None:
        if model.spatial_dims != 2:
            fix = "Use a 3D model as it is"
            raise ModelError(
                describe("SliceWise", "spatial_dims", found=model.spatial_dims, expected=2, fix=fix)
            )
        if axis not in (0, 1, 2):
            fix = "Choose the array axis to cut"
            raise ModelError(describe("SliceWise", "axis", found=axis, expected="0, 1 or 2", fix=fix))
        if batch_size is not None and batch_size < 1:
            fix = "Use None for all slices at once"
            raise ModelError(
                describe("SliceWise", "batch_size", found=batch_size, expected="at least 1", fix=fix)
            )
        divisor = list(model.divisor)
        divisor.insert(axis, 1)
        super().__init__(
            spatial_dims=3,
            in_channels=model.in_channels,
            num_classes=model.num_classes,
            divisor=tuple(divisor),
        )
        self.model = model
        self.axis = axis
        self.batch_size = batch_size

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
        slices = self._slices(image)
        parts = slices.split(self.batch_size or len(slices))
        logits = torch.cat([self.model(part) for part in parts])
        n, depth = image.shape[0], image.shape[2 + self.axis]
        volume = logits.reshape(n, depth, *logits.shape[1:])
        return volume.movedim(1, 2 + self.axis)

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of the 2D model, averaged over the slices.

        Args:
            image: (n c x y z).
            label: class indices (n 1 x y z), int64.
            instances: None, or an instance map (n 1 x y z); an object of a volume is one in each of its slices.

        Raises:
            ModelError: no criterion is set, or shapes do not fit.
        """
        self.check_image(image)
        self.check_label(image, label, instances)
        slices, labels = self._slices(image), self._slices(label)
        size = self.batch_size or len(slices)
        inputs = [slices.split(size), labels.split(size)]
        if instances is not None:
            inputs.append(self._slices(instances).split(size))
        total: dict[str, Tensor] = {}
        for parts in zip(*inputs, strict=True):
            share = len(parts[0]) / len(slices)
            for name, loss in self.model.losses(*parts).items():
                total[name] = total[name] + loss * share if name in total else loss * share
        return total

    def _slices(self, volume: Tensor) -> Tensor:
        """Move the cut axis of (n c x y z) into the batch: (n·slices c, *the two other axes)."""
        return volume.movedim(2 + self.axis, 1).flatten(0, 1)
