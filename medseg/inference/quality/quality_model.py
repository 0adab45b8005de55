"""The quality model of a model folder: ``quality.json``, which turns the properties of a prediction into estimates and flags.

It is fitted to the out-of-fold predictions of a cross-validation by `medseg.inference.quality.fit_quality`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from medseg.config import Config
from medseg.errors import ConfigError, ModelError
from medseg.inference.quality.case_quality import CaseQuality, Flag, FlagKind, LabelEstimate
from medseg.inference.quality.feature_kinds import FEATURE_KINDS
from medseg.inference.quality.image_features import Features
from medseg.storage.atomic import write_text
from medseg.storage.formats import check_format
from medseg.storage.json_files import parse_json

FILE = "quality.json"
FORMAT = 1
EXPECTED_DICE = "expected Dice"
"""Name of the property that follows from all others."""
_MOST_DEVIATION = 1e6
_LABEL_KINDS = frozenset(
    name for name, kind in FEATURE_KINDS.items() if kind.of_label and kind.flag not in (None, FlagKind.DICE)
)
_MOST_PLACE = 3.0  # beyond it, the regression is not continued


class UsualRange(Config):
    """Where a property usually is; on a logarithmic scale for properties that are compared by their ratio.

    Attributes:
        median: Median over the out-of-fold cases.
        below: Distance from the median to the 2nd percentile.
        above: Distance from the median to the 98th percentile.
    """

    median: float
    below: float = Field(gt=0)
    above: float = Field(gt=0)

    def deviation(self, value: float, *, low: bool, high: bool) -> float:
        """Return the distance from the median, relative to that of the 2nd or 98th percentile.

        Args:
            value: A value on the same scale.
            low: Whether small values are unusual.
            high: Whether large values are unusual.

        Returns:
            0 if the value is not on an unusual side; at most 1 for about 96 % of usual values.

        Examples:
            >>> usual = UsualRange(median=10, below=2, above=5)
            >>> usual.deviation(20, low=True, high=True), usual.deviation(7, low=False, high=True)
            (2.0, 0.0)
        """
        place = self.place(value)
        return min(abs(place), _MOST_DEVIATION) if (high if place > 0 else low) else 0.0

    def place(self, value: float) -> float:
        """Return the place of a value: 0 at the median, -1 at the 2nd and 1 at the 98th percentile."""
        distance = value - self.median
        return distance / (self.above if distance > 0 else self.below)


UsualRanges = Mapping[str, Mapping[str, UsualRange]]
"""Usual ranges by kind of property and by what was measured."""


class DiceRegression(Config):
    """The expected Dice of a label as a linear function of the places of properties in their usual ranges, with an interval.

    Attributes:
        intercept: The Dice of a case whose properties all have their median.
        weights: Change of the Dice per unit of `UsualRange.place`, by kind of property and by what was measured.
        low: What is added for the lower end of the interval; null if there were too few cases.
        high: What is added for the upper end; null likewise.
        cases: Number of cases with a Dice.
    """

    intercept: float
    weights: dict[str, dict[str, float]] = Field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    cases: int = Field(ge=1)

    def expected(self, features: Features, usual: UsualRanges) -> float:
        """Return the expected Dice.

        Args:
            features: The properties of a case; missing ones count as usual.
            usual: The usual ranges of all properties.

        Returns:
            The expected Dice, 0 to 1.
        """
        found = self.intercept
        for kind, by_subject in self.weights.items():
            for subject, weight in by_subject.items():
                found += weight * place(features, kind, subject, usual)
        return min(max(found, 0.0), 1.0)

    def ends(self, expected: float) -> tuple[float | None, float | None]:
        """Return the ends of the interval around an expected Dice, which are None if there were too few cases."""
        return (
            None if self.low is None else min(max(expected + self.low, 0.0), 1.0),
            None if self.high is None else min(max(expected + self.high, 0.0), 1.0),
        )


class VolumeRatios(Config):
    """The interval of the reference volume of a label, relative to its predicted volume.

    Attributes:
        low: Lower end, as a factor of the predicted volume; null if there were too few cases.
        high: Upper end, likewise.
        cases: Number of cases in which the label was predicted.
        absent_high_ml: Upper end in ml where the label was not predicted; null if there were too few such cases.
        absent_cases: Number of cases in which it was not predicted.
    """

    low: float | None = Field(None, ge=0)
    high: float | None = Field(None, ge=0)
    cases: int = Field(0, ge=0)
    absent_high_ml: float | None = Field(None, ge=0)
    absent_cases: int = Field(0, ge=0)

    def ends(self, volume_ml: float) -> tuple[float | None, float | None]:
        """Return the interval of the volume in the reference.

        Args:
            volume_ml: The predicted volume in ml.

        Returns:
            Lower and upper end in ml; None for what is not known.
        """
        if volume_ml == 0:
            return 0.0, self.absent_high_ml
        return (
            None if self.low is None else self.low * volume_ml,
            None if self.high is None else self.high * volume_ml,
        )


class Measured(Config):
    """What the quality model achieved on the out-of-fold cases of each fold, when fitted to the other folds.

    Attributes:
        dice_coverage: Fraction of Dice values within their interval; null without intervals.
        volume_coverage: Fraction of reference volumes within their interval; null without intervals.
        flagged: Fraction of cases with a flag; null without flags.
        correlation: Spearman's rank correlation of expected and true Dice over all cases and labels; null if unknown.
    """

    dice_coverage: float | None = None
    volume_coverage: float | None = None
    flagged: float | None = None
    correlation: float | None = None


class QualityModel(Config):
    """The contents of ``quality.json``.

    Attributes:
        format: Version of the file's format.
        cases: Number of out-of-fold cases.
        coverage: Nominal coverage of the intervals.
        flagged_share: Nominal fraction of usual cases with a flag.
        threshold: Deviation from which a property is flagged; null if there were too few cases.
        dice: Expected Dice by label.
        volumes: Intervals of volumes by label.
        usual: Usual ranges by kind of property and by what it was measured on.
        measured: Cross-validated figures of the quality model itself.
    """

    format: Literal[1] = 1
    cases: int = Field(ge=1)
    coverage: float = Field(0.9, gt=0, lt=1)
    flagged_share: float = Field(0.02, gt=0, lt=1)
    threshold: float | None = None
    dice: dict[str, DiceRegression] = Field(default_factory=dict)
    volumes: dict[str, VolumeRatios] = Field(default_factory=dict)
    usual: dict[str, dict[str, UsualRange]] = Field(default_factory=dict)
    measured: Measured = Measured()

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """Read the quality model of a model folder.

        Args:
            folder: The model folder.

        Returns:
            The quality model; None if the folder has none.

        Raises:
            ModelError: Another version of medseg wrote the file in another format, or it is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            check_format(values.get("format"), FORMAT, path, "quality model", error=ModelError)
            return cls.parse(values, source=str(path))
        except (ValueError, AttributeError, ConfigError) as error:
            raise ModelError(
                f"{path}: not readable ({error}). Copy the model folder again, or remove its quality model by aggregating "
                "the cross-validation again."
            ) from None

    def write(self, folder: Path) -> None:
        """Write ``quality.json`` into a model folder.

        Args:
            folder: The model folder.

        Raises:
            DataError: The file cannot be written.
        """
        write_text(folder / FILE, json.dumps(self.to_plain(), indent=1) + "\n")

    def judge(self, features: Features) -> CaseQuality:
        """Return estimates and flags for a prediction.

        Args:
            features: The properties of the image and the prediction.

        Returns:
            One estimate per label that the quality model knows, and the flags, the largest deviation first.
        """
        features = self.with_expected_dice(features)
        flags = self._flags(features)
        unlike = any(flag.kind is not FlagKind.DICE for flag in flags)
        labels = tuple(self._estimate(name, features, unlike) for name in {**self.volumes, **self.dice})
        return CaseQuality(labels, flags, self.coverage)

    def with_expected_dice(self, features: Features) -> Features:
        """Return features that include the expected Dice of each label that was found.

        Args:
            features: The properties of the image and the prediction.

        Returns:
            A new dictionary.
        """
        found = [name for name, value in features.get("empty", {}).items() if not value]
        expected = {
            name: self.dice[name].expected(features, self.usual) for name in found if name in self.dice
        }
        return {**features, EXPECTED_DICE: expected}

    def _estimate(self, name: str, features: Features, unlike: bool) -> LabelEstimate:
        """Return the estimates for one label; `unlike` says that the case is unlike those of the cross-validation."""
        expected, ratios = features[EXPECTED_DICE].get(name), self.volumes.get(name)
        dice: float | None = None
        low: float | None = None
        high: float | None = None
        if expected is not None:
            low, high = self.dice[name].ends(expected)
            dice = expected * self._trust(features)
            # Nothing was learned about such cases, so that the prediction may be worthless.
            low = 0.0 if unlike and low is not None else low
        volume_ends: tuple[float | None, float | None] = (None, None)
        if ratios is not None:
            volume_ends = ratios.ends(features.get("volume", {}).get(name, 0.0))
        return LabelEstimate(name, dice, low, high, *volume_ends)

    def _trust(self, features: Features) -> float:
        """Return the factor by which the expected Dice is reduced if labels are unlike those of the cross-validation.

        The regression knows usual cases only. Beyond the threshold, the expectation falls in inverse proportion to the largest
        deviation of a property of a label.
        """
        if self.threshold is None:
            return 1.0
        of_labels = [one for kind, _, one in deviations(features, self.usual) if kind in _LABEL_KINDS]
        return min(1.0, self.threshold / max([*of_labels, self.threshold]))

    def _flags(self, features: Features) -> tuple[Flag, ...]:
        if self.threshold is None:
            return ()
        found: list[tuple[float, int, Flag]] = []
        for kind, subject, deviation in deviations(features, self.usual):
            if deviation > self.threshold:
                usual = self.usual[kind][subject]
                low = usual.median - self.threshold * usual.below
                high = usual.median + self.threshold * usual.above
                flag = FEATURE_KINDS[kind].flagged(subject, features[kind][subject], low, high)
                found.append((-deviation, len(found), flag))
        return tuple(flag for _, _, flag in sorted(found))


def place(features: Features, kind: str, subject: str, usual: UsualRanges) -> float:
    """Return the place of a property in its usual range.

    Args:
        features: The properties of a case.
        kind: Kind of the property.
        subject: What it was measured on.
        usual: The usual ranges.

    Returns:
        `UsualRange.place`, at most 3 from the median; 0 for a property that is missing.
    """
    value, known = features.get(kind, {}).get(subject), usual.get(kind, {}).get(subject)
    if value is None or known is None or not math.isfinite(value):
        return 0.0
    return min(max(known.place(FEATURE_KINDS[kind].scaled(value)), -_MOST_PLACE), _MOST_PLACE)


def deviations(features: Features, usual: UsualRanges) -> Iterator[tuple[str, str, float]]:
    """Yield how far each property of a case is from usual values.

    Args:
        features: The properties.
        usual: The usual ranges; properties without one are left out, and so are those that are never flagged.

    Yields:
        Kind, what was measured, and `UsualRange.deviation`.
    """
    for kind, by_subject in features.items():
        shown = FEATURE_KINDS.get(kind)
        for subject, value in by_subject.items():
            known = usual.get(kind, {}).get(subject)
            if shown is not None and shown.flag is not None and known is not None and math.isfinite(value):
                scaled = shown.scaled(value)
                yield kind, subject, known.deviation(scaled, low=shown.low, high=shown.high)
