"""Case evidence: what the probabilities of an image say about its label map, as a few sums per label or region.

The sums are formed while the image is predicted, from the logits of each voxel of the network's grid, so that no volume of
probabilities is ever in memory. `CaseEvidence` holds them; the expected Dice of a label, its soft volume and its mean
entropy follow from them. They are about the network's decisions: label maps may be post-processed afterwards.

The probabilities are those before calibration (softmax or sigmoid of the logits). They do not depend on temperatures, which
are fitted later, so that the evidence of held-out cases and that of new images are comparable. An ensemble of model
folders adds up the mean of its models' probabilities, calibrated where these have temperatures, on the grid of the file
instead, because only there do they meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from medseg.inference.sliding.labelling import LabelRule, label_rule
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.to_file_grid import split_slices
from medseg.labels.label_table import Labels

BAND = (0.05, 0.95)
"""Probabilities of a label or region between which a voxel belongs to its uncertain band."""


@dataclass(frozen=True)
class OutputEvidence:
    """Sums over the voxels of an image for one label or region, each multiplied by the volume of a voxel in ml.

    *Inside* are the voxels that the network assigns to the label, or in which the region is present. The *band* are
    those whose probability of the label or region is within `BAND`. Entropies are divided by their maximum, so that they
    are between 0 and 1: by log K over K classes, by log 2 for a region.

    Attributes:
        name: Name of the label or region.
        value: Value of the label in label maps, or the value that a region is written as.
        predicted: Volume inside.
        probability: Sum of the probability: the soft volume.
        probability_inside: Sum of the probability inside.
        entropy_inside: Sum of the entropy inside.
        band: Volume of the band.
        entropy_band: Sum of the entropy over the band.
    """

    name: str
    value: int
    predicted: float
    probability: float
    probability_inside: float
    entropy_inside: float
    band: float
    entropy_band: float

    @property
    def expected_dice(self) -> float | None:
        """The Dice to expect if probabilities are right: twice `probability_inside` by `predicted` plus `probability`.

        The ratio of the expectations of both parts of the Dice, which is close to the expectation of the Dice for more than a
        few voxels. None if both volumes are 0.
        """
        total = self.predicted + self.probability
        return 2 * self.probability_inside / total if total > 0 else None

    @property
    def mean_entropy_inside(self) -> float | None:
        """The mean entropy inside, between 0 and 1; None if nothing is predicted."""
        return self.entropy_inside / self.predicted if self.predicted else None

    @property
    def mean_entropy_band(self) -> float | None:
        """The mean entropy of the band, between 0 and 1; None without a band."""
        return self.entropy_band / self.band if self.band else None

    @property
    def mean_probability_inside(self) -> float | None:
        """The mean probability inside, which is the mean maximum probability; None if nothing is predicted."""
        return self.probability_inside / self.predicted if self.predicted else None


@dataclass(frozen=True)
class CaseEvidence:
    """The evidence of one image.

    Attributes:
        outputs: One entry per foreground label, or per region, in the order of the table.

    Examples:
        >>> half = OutputEvidence("liver", 5, 2.0, 2.5, 1.5, 0.8, 1.0, 0.7)
        >>> round(half.expected_dice, 4), CaseEvidence((half,)).mean_max_probability
        (0.6667, 0.75)
        >>> CaseEvidence.from_plain({"outputs": [vars(half)]}) == CaseEvidence((half,))
        True
    """

    outputs: tuple[OutputEvidence, ...]

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the evidence that `dataclasses.asdict` made plain, as in a file of JSON."""
        return cls(tuple(OutputEvidence(**one) for one in values["outputs"]))

    @property
    def mean_max_probability(self) -> float | None:
        """The mean maximum probability over all predicted foreground; None if nothing is predicted."""
        predicted = sum(one.predicted for one in self.outputs)
        return sum(one.probability_inside for one in self.outputs) / predicted if predicted else None

    @property
    def mean_entropy(self) -> float | None:
        """The mean entropy over all predicted foreground, between 0 and 1; None if nothing is predicted."""
        predicted = sum(one.predicted for one in self.outputs)
        return sum(one.entropy_inside for one in self.outputs) / predicted if predicted else None


class EvidenceSums:
    """Adds up the evidence of an image while it is predicted; a `LogitObserver`.

    The sums stay on the device of the logits, which is not waited for before `evidence`.

    Args:
        labels: Labels that the network learned, and its regions if it predicts these.
        rule: How the logits of the network become labels; None for the rule of these labels.
    """

    def __init__(self, labels: Labels, rule: LabelRule | None = None) -> None:
        self._labels, self._rule = labels, rule or label_rule(labels)
        self._of_probabilities = label_rule(labels)
        self._voxel_ml = 0.0
        self._sums: Tensor | None = None

    def begin(self, prepared: PreparedPrediction) -> None:
        """Forget what was added: a prediction begins, or begins again in a smaller layout."""
        self.begin_grid(prepared.voxel_ml)

    def begin_grid(self, voxel_ml: float) -> None:
        """Forget what was added, and take voxels of another volume.

        Args:
            voxel_ml: Volume of a voxel in ml.
        """
        self._voxel_ml, self._sums = voxel_ml, None

    def see(self, logits: Tensor, first: int, columns: slice) -> None:
        """Add voxels of the network's grid.

        Args:
            logits: Logits `(slices, columns, *rest, k)`.
            first: Index of the first slice; not needed here.
            columns: Their columns; not needed here.
        """
        for piece in split_slices(logits):
            for some in piece.flatten(0, -2).split(max(1, _values_at_once(logits) // logits.shape[-1])):
                values = some.float()
                self._add(self._rule.present(values), self._rule.probabilities(values))

    def add_probabilities(self, probabilities: Tensor) -> None:
        """Add voxels of which probabilities are known instead of logits.

        Args:
            probabilities: Probabilities `(*shape, k)`.
        """
        values = probabilities.flatten(0, -2)
        for some in values.split(max(1, _values_at_once(values) // values.shape[-1])):
            self._add(self._of_probabilities.present(some - 0.5), some)

    def _add(self, present: Tensor, p: Tensor) -> None:
        """Add voxels, given which outputs are present in each and their probabilities, both `(voxels, k)`."""
        inside = present.to(p.dtype)
        entropy = self._rule.entropy(p)  # (voxels, k), or (voxels, 1) of all classes together
        band = ((p > BAND[0]) & (p < BAND[1])).to(p.dtype)
        parts = (inside, p, p * inside, entropy * inside, band, entropy * band)
        sums = torch.stack([part.sum(0, dtype=torch.float64) for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def evidence(self) -> CaseEvidence:
        """Return the evidence of everything that was added since the beginning."""
        outputs = self._labels.evaluated
        sums = torch.zeros(6, self._labels.num_outputs) if self._sums is None else self._sums.cpu()
        per_output = (sums * self._voxel_ml).T[-len(outputs) :].tolist()  # without the background
        return CaseEvidence(
            tuple(
                OutputEvidence(one.name, one.output_value, *values)
                for one, values in zip(outputs, per_output, strict=True)
            )
        )


def _values_at_once(values: Tensor) -> int:
    """Return how many logits to work on at once: few on the processor, whose cache they fit, and 64 MiB on other devices."""
    return 1 << 18 if values.device.type == "cpu" else 1 << 24
