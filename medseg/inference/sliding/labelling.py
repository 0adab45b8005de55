"""How logits become labels: the largest of the classes, or every region that is present, later ones over earlier.

Of each `Decision` holds: where all voxels around a point have one class, every convex mixture of their logits has it, so
that nothing need be interpolated there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import ModelError
from medseg.io.probability_files import TOP
from medseg.labels.label_table import Labels

NOTHING = 1.0  # by how much the logits say background where no window was predicted


class LabelRule(Protocol):
    """A rule; logits have their outputs last, `(*shape, k)`. A class is a place in `values`, not a value."""

    @property
    def values(self) -> NDArray[Any]:
        """Value in files of each class; the first is background."""

    @property
    def background_logits(self) -> tuple[float, ...]:
        """Logits `(k,)` of a voxel that no window was predicted for."""

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """Probabilities `(k,)` of a voxel that was not looked at."""

    def classes(self, logits: Tensor) -> Tensor:
        """Classes `(*shape)` int16; `ModelError` where logits are not finite."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `(*shape, k)`."""

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Classes by the mean of `count` models, from the sums `(*shape, k)` of their encoded probabilities."""


def label_rule(labels: Labels) -> LabelRule:
    """The rule for the outputs of a network that learned these labels."""
    values = labels.to_values(np.arange(len(labels)))
    if not labels.regions:
        return Argmax(values)
    return RegionThreshold(np.array([0, *(region.output_value for region in labels.regions)], values.dtype))


@dataclass(frozen=True)
class Argmax:
    """One output a class; the first of the largest is taken.

    Rounding never turns a larger product or sum into a smaller one, so the class that is largest in all of some voxels
    is largest in every mixture of them, in floating point too.

    Attributes:
        values: the value in files of each class, background first.
    """

    values: NDArray[Any]

    @property
    def background_logits(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (NOTHING, *(0.0,) * (len(self.values) - 1))

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (1.0, *(0.0,) * (len(self.values) - 1))

    def classes(self, logits: Tensor) -> Tensor:
        """See `Decision`."""
        largest, index = logits.max(-1)
        _check_finite(largest)
        return index.to(torch.int16)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax."""
        return torch.softmax(logits, -1)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """See `Decision`."""
        return np.asarray(sums.argmax(-1))


@dataclass(frozen=True)
class RegionThreshold:
    """One output a region, which may overlap with others; present where its sigmoid exceeds a half.

    A label map starts as background, and each region in turn is written over it (nnU-Net, Isensee et al. 2021), so the
    class of a voxel is the last region that is present. A mixture of positive logits is positive, and one of logits that
    are not is not; in floating point too, unless they are smaller than 1e-37. So where the last region present is the
    same in all of some voxels, it is so in every mixture of them, whatever earlier regions do underneath. That the same
    value is written would not do: two regions may share it.

    Attributes:
        values: 0, and the value that is written for each region.
    """

    values: NDArray[Any]

    @property
    def background_logits(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (-NOTHING,) * (len(self.values) - 1)

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (0.0,) * (len(self.values) - 1)

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.arange(1, len(self.values), dtype=torch.int16)

    def classes(self, logits: Tensor) -> Tensor:
        """See `Decision`."""
        _check_finite(torch.stack(torch.aminmax(logits)))
        return (logits > 0).mul(self._numbers.to(logits.device)).amax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoid."""
        return torch.sigmoid(logits)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """See `Decision`."""
        present = 2 * sums.astype(np.int64) > count * int(TOP)
        return np.asarray((present * np.arange(1, len(self.values))).max(-1))


def _check_finite(logits: Tensor) -> None:
    """Raise a `ModelError` unless the logits are all finite."""
    if not torch.isfinite(logits).all():
        raise ModelError(
            "logits: found NaN or infinity, expected finite numbers. Predict with precision=float32, or check the weights."
        )
