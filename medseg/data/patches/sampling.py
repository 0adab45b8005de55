"""Sampling of training patches: their case, their centre, and the share of those centred on foreground.

Randomness is stateless: the generator of each sample is derived from (seed, stream, index). Workers, ranks and a
resumed run therefore see the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medseg.data.patches.case_store import StoredCase
from medseg.errors import DataError


def sample_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of one sample; equal arguments give equal numbers on every machine.

    Args:
        seed: Seed of the experiment.
        stream: Name of the sequence of samples, such as ``train``.
        index: Number of the sample in its sequence.

    Returns:
        A NumPy generator.

    Examples:
        >>> one, two = sample_generator(0, "train", 7), sample_generator(0, "train", 7)
        >>> one.random() == two.random()
        True
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class PatchSampler:
    """Chooses a case and the centre of a patch for each sample.

    Cases are sampled with replacement, in proportion to their weights. The last ``round(foreground · batch_size)`` patches of a batch are
    centred on a voxel of a foreground class or region, which is chosen uniformly among those of the case (nnU-Net's
    rule); their cases are sampled among those with foreground. If that number is zero, one patch of some batches is
    centred on foreground, so that the share is still met. If the dataset has an ignore label, all other patches are
    centred on an annotated voxel.

    Args:
        cases: Prepared cases.
        size: Patch size in voxels, three numbers; 1 along the slice axis of a 2D patch.
        batch_size: Samples per step.
        foreground: Share of patches centred on foreground, in [0, 1].
        weights: Weight of each case, in the order of `cases`: a case of weight 2 is sampled twice as often as one of
            weight 1, also among the cases with foreground, and one of weight 0 never. None weights all cases alike.

    Raises:
        DataError: There is no case, or none with a weight above 0.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        size: tuple[int, ...],
        batch_size: int,
        foreground: float = 0.33,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not cases:
            raise DataError("patches: found no case, expected at least one. Check the split.")
        self.cases = list(cases)
        self._all = _WeightedCases.of(self.cases, [1.0] * len(cases) if weights is None else weights)
        sampled = zip(self._all.cases, self._all.weights, strict=True)
        pairs = [(case, weight) for case, weight in sampled if case.has_foreground]
        self._with_foreground = _WeightedCases.of(*zip(*pairs, strict=True)) if pairs else self._all
        self.size = size
        self.batch_size = batch_size
        self.foreground = foreground
        self._first_foreground_index = round(batch_size * (1 - foreground))

    def sample(self, index: int, rng: np.random.Generator) -> tuple[StoredCase, NDArray[np.intp]]:
        """Return the case of sample `index` and the voxel `(3,)` that comes to index ``size // 2`` of its patch.

        Args:
            index: Number of the sample; it belongs to step ``index // batch_size``.
            rng: Generator of the sample.

        Returns:
            The stored case, and the voxel `(3,)` in its arrays.
        """
        centred = self.is_centred_on_foreground(index)
        case = (self._with_foreground if centred else self._all).sample(rng)
        if centred and case.has_foreground:
            return case, _foreground_voxel(case, rng)
        annotated = case.class_locations.get(0)
        if annotated is not None:  # the dataset has an ignore label
            return case, np.asarray(annotated[int(rng.integers(len(annotated)))], dtype=np.intp)
        return case, self._uniform_centre(case, rng)

    def is_centred_on_foreground(self, index: int) -> bool:
        """Return whether the patch of sample `index` is centred on foreground."""
        if 1 < self.batch_size > self._first_foreground_index:
            return index % self.batch_size >= self._first_foreground_index
        return int((index + 1) * self.foreground) > int(index * self.foreground)

    def _uniform_centre(self, case: StoredCase, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the centre of a random patch.

        Along each axis, the patch lies inside the case, or the case inside the patch if the patch is longer.
        """
        spare = [extent - length for extent, length in zip(case.shape, self.size, strict=True)]
        low, high = [min(0, n) for n in spare], [max(0, n) for n in spare]
        start = rng.integers(low, high, endpoint=True)
        return np.asarray(start + np.array(self.size) // 2, dtype=np.intp)


def _foreground_voxel(case: StoredCase, rng: np.random.Generator) -> NDArray[np.intp]:
    locations = case.class_locations
    numbers = [number for number in locations if number > 0]
    voxels = locations[numbers[int(rng.integers(len(numbers)))]]
    return np.asarray(voxels[int(rng.integers(len(voxels)))], dtype=np.intp)


def require_sampled(weights: Collection[float]) -> None:
    """Raise `DataError` unless one of the training cases has a weight above 0."""
    if not any(weight > 0 for weight in weights):
        raise DataError(
            f"case weights: found 0 for all {len(weights)} training cases, expected one above 0. Correct data.case_weights or the "
            "column case_weight."
        )


@dataclass(frozen=True)
class _WeightedCases:
    """Cases that can be sampled, each with a weight above 0."""

    cases: tuple[StoredCase, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, cases: Sequence[StoredCase], weights: Sequence[float]) -> _WeightedCases:
        """Return the cases with a weight above 0."""
        require_sampled(weights)
        pairs = [(case, weight) for case, weight in zip(cases, weights, strict=True) if weight > 0]
        return cls(tuple(case for case, _ in pairs), tuple(weight for _, weight in pairs))

    def sample(self, rng: np.random.Generator) -> StoredCase:
        """Return a random case."""
        if len(set(self.weights)) == 1:
            return self.cases[int(rng.integers(len(self.cases)))]
        ends = self._ends
        return self.cases[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]

    @cached_property
    def _ends(self) -> NDArray[np.float64]:
        """The end of the interval of each case on a line, whose length is its weight."""
        return np.cumsum(self.weights)
