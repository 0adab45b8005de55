"""Label rules: how logits become labels.

`Argmax` takes the largest class; `RegionThreshold` every region that is present, later regions over earlier ones.

Both rules have the property that makes export fast (*label before interpolate*): where all voxels around a point have the
same class, every convex mixture of their logits has that class, too. Linear interpolation forms convex mixtures, so nothing
needs to be interpolated there; see `medseg.inference.sliding.to_file_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

BACKGROUND_MARGIN = 100.0
"""By how much background exceeds the other logits where no window was predicted: so much that its probability is 1, also
after a division by a temperature."""


class NotFiniteError(ModelError):
    """Logits are NaN or infinite."""


class FiniteCheck:
    """Checks that logits are finite: at once on the CPU, and at the end on other devices, which are not waited for."""

    def __init__(self) -> None:
        self._failed: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Check some values.

        Args:
            values: Logits, or extremes of logits.

        Raises:
            NotFiniteError: A value on the CPU is NaN or infinite.
        """
        failed = torch.isfinite(values).all().logical_not_()
        if failed.device.type == "cpu":
            self._raise_if(failed)
        else:
            self._failed = failed if self._failed is None else self._failed.logical_or_(failed)

    def finish(self) -> None:
        """Raise `NotFiniteError` if a value on another device was NaN or infinite."""
        if self._failed is not None:
            self._raise_if(self._failed)

    @staticmethod
    def _raise_if(failed: Tensor) -> None:
        if failed:
            raise NotFiniteError(
                "logits: found NaN or infinity, expected finite numbers. Predict with precision=float32, or check the "
                "weights."
            )


class LabelRule(Protocol):
    """A rule that maps logits `(*shape, k)`, with outputs on the last axis, to classes.

    A class is an index into `values`, not a label value.
    """

    @property
    def values(self) -> NDArray[Any]:
        """The label value of each class in files; the first is background."""

    @property
    def background_logits(self) -> tuple[float, ...]:
        """The logits `(k,)` of a voxel for which no window was predicted."""

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """The probabilities `(k,)` of a voxel outside the box to which the image is cropped for the network."""

    def classes(self, logits: Tensor, check: FiniteCheck | None = None) -> Tensor:
        """Return classes `(*shape)` int16 of logits `(*shape, k)`, which `check` is given if there is one."""

    def present(self, logits: Tensor) -> Tensor:
        """Return which outputs are present, a bool tensor `(*shape, k)`: the largest class, or regions above 0."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities `(*shape, k)`."""

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the entropy of probabilities `(*shape, k)`, divided by its maximum.

        Args:
            probabilities: Probabilities of all classes or regions.

        Returns:
            Entropy between 0 and 1: `(*shape, 1)` of all classes together, or `(*shape, k)` of each region.
        """

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Return classes from the mean probabilities of several models.

        Args:
            sums: Sums `(*shape, k)` of the models' probabilities, encoded as in `ProbabilityFile`.
            count: Number of models.

        Returns:
            Class indices `(*shape)`, positions in `values`.
        """


def label_rule(labels: Labels, temperatures: Sequence[float] = ()) -> LabelRule:
    """Return the rule for the outputs of a network.

    Args:
        labels: Labels that the network learned, and its regions if it predicts these.
        temperatures: One temperature, or one per class or region, by which logits are divided before they become
            probabilities; none leaves them as they are. Classes never depend on temperatures.

    Returns:
        `RegionThreshold` if the network predicts regions, else `Argmax`.

    Examples:
        >>> rule = label_rule(Labels.from_names({"background": 0, "liver": 5}))
        >>> rule.values[rule.classes(torch.tensor([[0.2, 0.7], [0.9, 0.1]]))]
        array([5, 0], dtype=uint8)
    """
    values = labels.to_values(np.arange(len(labels)))
    given = tuple(temperatures)
    if not labels.regions:
        return Argmax(values, given)
    output_values = [0, *(region.output_value for region in labels.regions)]
    return RegionThreshold(np.array(output_values, values.dtype), given)


@dataclass(frozen=True)
class Argmax:
    """The class with the largest logit; of equal ones, the first.

    Rounding never makes a larger product or sum smaller than a smaller one. A class that is largest in several voxels is
    therefore largest in every mixture of them, in floating point, too.

    Attributes:
        values: Label value of each class in files, background first.
        temperatures: See `label_rule`.
    """

    values: NDArray[Any]
    temperatures: tuple[float, ...] = ()

    @property
    def background_logits(self) -> tuple[float, ...]:
        """The logits `(k,)` of a voxel for which no window was predicted."""
        return (BACKGROUND_MARGIN, *(0.0,) * (len(self.values) - 1))

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """The probabilities `(k,)` of a voxel outside the box to which the image is cropped for the network."""
        return (1.0, *(0.0,) * (len(self.values) - 1))

    def classes(self, logits: Tensor, check: FiniteCheck | None = None) -> Tensor:
        """Return classes `(*shape)` int16 of logits `(*shape, k)`, see `LabelRule`."""
        largest, index = logits.max(-1)
        if check is not None:
            check.add(largest)
        return index.to(torch.int16)

    def present(self, logits: Tensor) -> Tensor:
        """Return which class is the largest, see `LabelRule`."""
        classes = torch.arange(logits.shape[-1], device=logits.device)
        return torch.eq(logits.argmax(-1, keepdim=True), classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax, of logits by their temperatures; with one per class, of logits less their mean."""
        if len(self.temperatures) > 1:
            logits = logits - logits.mean(-1, keepdim=True)
        return torch.softmax(_tempered(logits, self.temperatures), -1)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the entropy over all classes `(*shape, 1)` by log k, see `LabelRule`."""
        entropy: Tensor = torch.special.entr(probabilities).sum(-1, keepdim=True)
        return entropy / math.log(probabilities.shape[-1])

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Return classes from the mean probabilities of several models, see `LabelRule`."""
        return np.asarray(sums.argmax(-1))


@dataclass(frozen=True)
class RegionThreshold:
    """The last region that is present, which is a region whose sigmoid exceeds one half.

    There is one output per region, and regions may overlap. A label map starts as background and each region in turn is
    written over it (nnU-Net, Isensee et al. 2021), so the class of a voxel is the last region present.

    A mixture of positive logits is positive, and a mixture of other logits is not; in floating point, too, unless they are
    smaller than 1e-37. Where the last region present is the same in several voxels, it is therefore the same in every
    mixture of them, whatever earlier regions do. Comparing the label values instead would be wrong, because two regions may
    share one.

    Attributes:
        values: 0, then the label value that is written for each region.
        temperatures: See `label_rule`.
    """

    values: NDArray[Any]
    temperatures: tuple[float, ...] = ()

    @property
    def background_logits(self) -> tuple[float, ...]:
        """The logits `(k,)` of a voxel for which no window was predicted."""
        return (-BACKGROUND_MARGIN,) * (len(self.values) - 1)

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """The probabilities `(k,)` of a voxel outside the box to which the image is cropped for the network."""
        return (0.0,) * (len(self.values) - 1)

    @cached_property
    def _numbers(self) -> dict[torch.device, Tensor]:
        """The numbers of the regions, 1 … k, on each device that asked for them: copying them would wait for it."""
        return {}

    def _numbers_on(self, device: torch.device) -> Tensor:
        if device not in self._numbers:
            self._numbers[device] = torch.arange(1, len(self.values), dtype=torch.int16, device=device)
        return self._numbers[device]

    @staticmethod
    def present(logits: Tensor) -> Tensor:
        """Return whether the region of each logit is present, a bool tensor of the same shape."""
        return logits > 0

    def classes(self, logits: Tensor, check: FiniteCheck | None = None) -> Tensor:
        """Return classes `(*shape)` int16 of logits `(*shape, k)`, see `LabelRule`."""
        if check is not None:
            check.add(torch.stack(torch.aminmax(logits)))
        return self.present(logits).mul(self._numbers_on(logits.device)).amax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid, of logits by their temperatures."""
        return torch.sigmoid(_tempered(logits, self.temperatures))

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the entropy of each region `(*shape, k)` by log 2, see `LabelRule`."""
        entropy: Tensor = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
        return entropy / math.log(2)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Return classes from the mean probabilities of several models, see `LabelRule`."""
        present = 2 * sums.astype(np.int64) > count * int(TOP)
        return np.asarray((present * np.arange(1, len(self.values))).max(-1))


def _tempered(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return logits `(*shape, k)` by their temperatures: none, one, or one per output."""
    if not temperatures:
        return logits
    if len(temperatures) == 1:
        return logits / temperatures[0]
    return logits / torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)
