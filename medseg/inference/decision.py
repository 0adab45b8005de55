"""How logits become labels: the largest of the classes, or every region that is present, later ones over earlier.

A `Decision` also tells the marks of a voxel. Where all voxels around a point have the same marks, every convex mixture
of their logits has the label that each of them has, so that nothing need be interpolated there.
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
from medseg.io.probabilities import TOP
from medseg.labels import Labels

NOTHING = 1.0  # by how much the logits say background where no window was predicted
_BITS = 24  # whole numbers below 2**24 are exact in float32


@dataclass(frozen=True)
class Decided:
    """What was decided of some voxels.

    Attributes:
        classes: places in `Decision.values`, `(*shape)` int16.
        marks: tensors `(*shape)`; voxels that agree in all of them agree with every mixture of their logits.
    """

    classes: Tensor
    marks: tuple[Tensor, ...]


class Decision(Protocol):
    """A rule; logits have their outputs last, `(*shape, k)`."""

    @property
    def values(self) -> NDArray[Any]:
        """Values in files that the rule chooses among; the first is background."""

    @property
    def nothing(self) -> tuple[float, ...]:
        """Logits `(k,)` of a voxel that no window was predicted for."""

    @property
    def outside(self) -> tuple[float, ...]:
        """Probabilities `(k,)` of a voxel that was not looked at."""

    def decided(self, logits: Tensor) -> Decided:
        """Classes and marks of voxels; `ModelError` where logits are not finite."""

    def classes(self, logits: Tensor) -> Tensor:
        """Places in `values`, `(*shape)`."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `(*shape, k)`."""

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Places in `values` by the mean of `count` models, from the sums `(*shape, k)` of their encoded probabilities."""


def decision_of(labels: Labels) -> Decision:
    """The rule for the outputs of a network that learned these labels."""
    values = labels.to_values(np.arange(len(labels)))
    if not labels.regions:
        return LargestClass(values)
    return PresentRegions(np.array([0, *(region.written for region in labels.regions)], values.dtype))


@dataclass(frozen=True)
class LargestClass:
    """One output a class; the first of the largest is taken.

    Rounding never turns a larger product or sum into a smaller one, so the class that is largest in all of some voxels
    is largest in every mixture of them, in floating point too.

    Attributes:
        values: the value in files of each class, background first.
    """

    values: NDArray[Any]

    @property
    def nothing(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (NOTHING, *(0.0,) * (len(self.values) - 1))

    @property
    def outside(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (1.0, *(0.0,) * (len(self.values) - 1))

    def decided(self, logits: Tensor) -> Decided:
        """See `Decision`."""
        largest, index = logits.max(-1)
        _check_finite(largest)
        classes = index.to(torch.int16)
        return Decided(classes, (classes,))

    def classes(self, logits: Tensor) -> Tensor:
        """See `Decision`."""
        return logits.max(-1).indices

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax."""
        return torch.softmax(logits, -1)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """See `Decision`."""
        return np.asarray(sums.argmax(-1))


@dataclass(frozen=True)
class PresentRegions:
    """One output a region, which may overlap with others; present where its sigmoid exceeds a half.

    A label map starts as background, and each region in turn is written over it (nnU-Net, Isensee et al. 2021). A mixture
    of positive logits is positive and one of logits that are not is not, in floating point too unless they are smaller
    than 1e-37; so voxels that agree in the sign of every region agree with their mixtures. That they get the same label
    would not do: a later region may hide that they differ in an earlier one.

    Attributes:
        values: 0, and the value that is written for each region.
    """

    values: NDArray[Any]

    @property
    def nothing(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (-NOTHING,) * (len(self.values) - 1)

    @property
    def outside(self) -> tuple[float, ...]:
        """See `Decision`."""
        return (0.0,) * (len(self.values) - 1)

    @cached_property
    def _powers(self) -> Tensor:
        return torch.ldexp(torch.ones(_BITS), torch.arange(_BITS))

    def decided(self, logits: Tensor) -> Decided:
        """See `Decision`."""
        _check_finite(torch.stack(torch.aminmax(logits)))
        codes = self._codes(logits)
        return Decided(_last_present(codes).to(torch.int16), codes)

    def classes(self, logits: Tensor) -> Tensor:
        """See `Decision`."""
        return _last_present(self._codes(logits))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoid."""
        return torch.sigmoid(logits)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """See `Decision`."""
        present = 2 * sums.astype(np.int64) > count * int(TOP)
        return np.asarray((present * np.arange(1, len(self.values))).max(-1))

    def _codes(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Which regions are present: a whole number for every 24 of them, one bit a region, in float32."""
        present = (logits > 0).float()
        powers = self._powers.to(logits.device)
        return tuple(part @ powers[: part.shape[-1]] for part in present.split(_BITS, -1))


def _last_present(codes: tuple[Tensor, ...]) -> Tensor:
    """Number of the last region that is present, counted from 1; 0 where none is."""
    found = torch.frexp(codes[0]).exponent  # of a whole number: how many bits it has
    for group, code in enumerate(codes[1:], start=1):
        found = torch.where(code > 0, torch.frexp(code).exponent + group * _BITS, found)
    return found.long()


def _check_finite(logits: Tensor) -> None:
    """Raise a `ModelError` unless the logits are all finite."""
    if not torch.isfinite(logits).all():
        raise ModelError(
            "logits: found NaN or infinity, expected finite numbers. Predict with precision=float32, or check the weights."
        )
