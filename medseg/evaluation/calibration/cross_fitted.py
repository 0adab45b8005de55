"""Temperatures of a cross-validation, and its calibration before and after, each fold with those of the others.

Temperatures are fitted on voxels near foreground, where probabilities matter. The figures after calibration are cross-fitted:
the voxels of a fold are calibrated with temperatures that were fitted on the other folds. The temperatures for new images are
then fitted on all folds together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.calibration.reliability import (
    CalibrationFigures,
    brier_score,
    calibration_error,
    reliability,
)
from medseg.evaluation.calibration.temperature import (
    LARGEST,
    Temperatures,
    fit_temperature,
    fit_temperatures,
    is_at_limit,
    negative_log_likelihood,
    probabilities,
)
from medseg.inference.uncertainty.logit_sample import VoxelSample, output_members
from medseg.labels.label_table import Labels

WORTHWHILE = 0.01
"""Share of the negative log-likelihood by which one temperature per output must be better than one."""
MOST_VALUES = 1 << 22
"""Logits that are fitted on; of larger samples, every n-th voxel is used."""

Method = Literal["one", "per_label"]
Part = Literal["near", "whole"]


@dataclass(frozen=True)
class CrossFitted:
    """The calibration of a cross-validation.

    Attributes:
        method: Whether there is one temperature, or one per class or region.
        temperatures: The temperatures fitted on all folds.
        of_folds: For each fold, the temperatures fitted on the other folds.
        cases: Number of cases that were sampled.
        voxels: Number of voxels that were sampled.
        held_out_nll: Negative log-likelihood near foreground of the folds left out, by method.
        before: Figures without calibration, near foreground and of the whole image.
        after: Figures after calibration with the temperatures of the other folds.
    """

    method: Method
    temperatures: Temperatures
    of_folds: tuple[Temperatures, ...]
    cases: int
    voxels: int
    held_out_nll: dict[Method, float]
    before: dict[Part, CalibrationFigures]
    after: dict[Part, CalibrationFigures]

    @property
    def at_limit(self) -> tuple[str, ...]:
        """The outputs whose temperature is the smallest or largest that is tried; ``"all"`` if there is one temperature."""
        names = ["background", *self.before["near"].by_label][-len(self.temperatures) :]
        return tuple(
            "all" if len(self.temperatures) == 1 else name
            for name, value in zip(names, self.temperatures, strict=True)
            if is_at_limit(value)
        )

    @property
    def limit_note(self) -> str:
        """What to do about temperatures at a limit, as a sentence without a full stop; empty if there are none."""
        if not self.at_limit:
            return ""
        return (
            f"temperatures at the limit of {1 / LARGEST:g} to {LARGEST:g}, so that probabilities stay uncalibrated ({', '.join(self.at_limit)}): "
            "the label hardly occurs in held-out cases, or the network is always right or wrong there; look at these cases"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return everything as plain values, as in ``summary.json``."""
        figures = {
            when: {part: found.to_plain() for part, found in parts.items()}
            for when, parts in (("before", self.before), ("after", self.after))
        }
        return {
            "method": self.method,
            "temperatures": list(self.temperatures),
            "temperatures_of_folds": [list(one) for one in self.of_folds],
            "cases": self.cases,
            "voxels": self.voxels,
            "at_limit": list(self.at_limit),
            "held_out_nll": dict(self.held_out_nll),
            **figures,
        }

    def __str__(self) -> str:
        before, after = self.before["near"], self.after["near"]
        shown = ", ".join(f"{one:.3g}" for one in self.temperatures)
        noun = "temperature" if len(self.temperatures) == 1 else "temperatures"
        note = f"\n{self.limit_note}" if self.limit_note else ""
        return (
            f"calibration near foreground: expected calibration error {before.ece:.2%} -> {after.ece:.2%}, "
            f"Brier score {before.brier:.4f} -> {after.brier:.4f} ({noun} {shown}; each fold with those of the others){note}"
        )


def cross_fitted(samples: Mapping[int, Sequence[VoxelSample]], labels: Labels) -> CrossFitted | None:
    """Fit temperatures and measure the calibration before and after.

    Args:
        samples: The samples of the cases of each fold.
        labels: Labels that the networks learned, and their regions if they predict these.

    Returns:
        The calibration; None if fewer than two folds have voxels near foreground.
    """
    sampled = {fold: [one for one in cases if len(one)] for fold, cases in samples.items()}
    values = sum(one.logits.size for cases in sampled.values() for one in cases)
    step = -(-values // MOST_VALUES) or 1
    joined = {
        fold: _thinned(VoxelSample.joined(cases), step) for fold, cases in sorted(sampled.items()) if cases
    }
    joined = {fold: one for fold, one in joined.items() if one.near.any()}
    if len(joined) < 2:
        return None
    fits = _Fits(labels)
    near = {fold: one.chosen(one.near) for fold, one in joined.items()}
    found: dict[Method, tuple[Temperatures, ...]] = {"one": (), "per_label": ()}
    for fold in near:
        others = VoxelSample.joined([one for other, one in near.items() if other != fold])
        one = fits.one(others)
        found["one"] += (one,)
        found["per_label"] += (fits.per_label(others, one),)
    nll = {method: fits.mean_nll(list(near.values()), each) for method, each in found.items()}
    method: Method = "per_label" if nll["per_label"] < (1 - WORTHWHILE) * nll["one"] else "one"
    everything = VoxelSample.joined(list(near.values()))
    final = fits.one(everything)
    if method == "per_label":
        final = fits.per_label(everything, final)
    before: list[Temperatures] = [()] * len(joined)
    return CrossFitted(
        method,
        final,
        found[method],
        sum(map(len, sampled.values())),
        sum(map(len, joined.values())),
        nll,
        fits.figures(list(joined.values()), before),
        fits.figures(list(joined.values()), found[method]),
    )


def _thinned(sample: VoxelSample, step: int) -> VoxelSample:
    """Return every n-th voxel of a sample, whose order within a stratum is random; each weighs as much more."""
    if step == 1:
        return sample
    kept = sample.chosen(np.arange(len(sample)) % step == 0)
    return VoxelSample(kept.logits, kept.reference, kept.weight * step, kept.near)


class _Fits:
    """Fits and figures for the outputs of one label table."""

    def __init__(self, labels: Labels) -> None:
        self._labels, self._regions = labels, bool(labels.regions)
        self._members = output_members(labels)

    def one(self, sample: VoxelSample) -> Temperatures:
        return fit_temperature(sample, self._members, regions=self._regions)

    def per_label(self, sample: VoxelSample, start: Temperatures) -> Temperatures:
        return fit_temperatures(sample, self._members, start, regions=self._regions)

    def mean_nll(self, samples: Sequence[VoxelSample], each: Sequence[Temperatures]) -> float:
        """Return the negative log-likelihood of samples, each with temperatures of its own."""
        weights = [one.weight.sum() for one in samples]
        losses = [
            negative_log_likelihood(one, self._members, own, regions=self._regions)
            for one, own in zip(samples, each, strict=True)
        ]
        return float(np.average(losses, weights=weights))

    def figures(
        self, samples: Sequence[VoxelSample], each: Sequence[Temperatures]
    ) -> dict[Part, CalibrationFigures]:
        """Return the calibration near foreground and of the whole image, each sample with temperatures of its own."""
        p = np.concatenate(
            [
                probabilities(one.logits, own, regions=self._regions)
                for one, own in zip(samples, each, strict=True)
            ]
        )
        joined = VoxelSample.joined(list(samples))
        parts: dict[Part, NDArray[np.bool_]] = {"near": joined.near, "whole": np.ones(len(joined), bool)}
        return {part: self._figures(joined.chosen(index), p[index]) for part, index in parts.items()}

    def _figures(self, sample: VoxelSample, p: NDArray[np.float64]) -> CalibrationFigures:
        inside, weight = self._members[sample.reference], sample.weight
        if self._regions:
            present = sample.logits > 0
            confidence = np.where(present, p, 1 - p).ravel()
            right = (present == inside).ravel()
            repeated = np.repeat(weight, p.shape[1])
            chances = np.where(inside, p, 1 - p)
        else:
            rows, predicted = np.arange(len(p)), sample.logits.argmax(-1)
            confidence, right, repeated = p[rows, predicted], inside[rows, predicted], weight
            chances = p[inside]
        diagram = reliability(confidence, right, repeated)
        names = self._labels.output_names
        foreground = range(0 if self._regions else 1, len(names))
        tiny = np.finfo(np.float64).tiny
        losses = -np.log(np.maximum(chances, tiny))
        return CalibrationFigures(
            float(np.average(losses.mean(-1) if self._regions else losses, weights=weight)),
            calibration_error(diagram),
            brier_score(p, inside, weight, regions=self._regions),
            {names[k]: calibration_error(reliability(p[:, k], inside[:, k], weight)) for k in foreground},
            diagram,
        )
