"""What is known about the quality of one prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from medseg.data.preprocessing.unlike_training import unlike_sentence


class FlagKind(StrEnum):
    """Why a case is to be reviewed.

    Attributes:
        IMAGE: The image is unlike those of the training.
        VOLUME: The volume of a label is beyond what was seen.
        EMPTY: A label that is rarely absent was not found.
        BORDER: A label that rarely touches the border of the scan does so.
        COMPONENTS: A label has more connected components than was seen.
        SHAPE: A label is more spread out or more compact than was seen.
        DICE: The expected Dice is low.
    """

    IMAGE = "image"
    VOLUME = "volume"
    EMPTY = "empty"
    BORDER = "border"
    COMPONENTS = "components"
    SHAPE = "shape"
    DICE = "expected Dice"


_CLEAREST_FIRST = (
    FlagKind.VOLUME,
    FlagKind.EMPTY,
    FlagKind.BORDER,
    FlagKind.COMPONENTS,
    FlagKind.SHAPE,
    FlagKind.DICE,
    FlagKind.IMAGE,
)
"""Kinds in the order in which they are listed: what a reader can check in the labels comes before figures of the image."""


@dataclass(frozen=True)
class Flag:
    """A reason to review a prediction.

    Attributes:
        kind: Kind of reason.
        field: The property, such as ``volume of liver``.
        found: Its value.
        expected: The range in which it usually is.
        learned: Whether the range follows from the out-of-fold cases of a cross-validation, and not from the training data.
    """

    kind: FlagKind
    field: str
    found: str
    expected: str
    learned: bool = False

    @property
    def sentence(self) -> str:
        """One line with property, value and range.

        >>> Flag(FlagKind.VOLUME, "volume of liver", "310 ml", "900 to 2400 ml").sentence
        'volume of liver: found 310 ml, expected 900 to 2400 ml'
        """
        return f"{self.field}: found {self.found}, expected {self.expected}"

    def note(self, where: str) -> str:
        """Return a message.

        Args:
            where: The file.

        Returns:
            One line with file, property, value, range and remedy.
        """
        if self.learned:
            return f"{where}: {self.sentence}, as in the cross-validation of the model. Check the labels."
        return unlike_sentence(where, self.field, self.found, self.expected)


def ordered_flags(flags: Iterable[Flag]) -> tuple[Flag, ...]:
    """Return flags so that the first ones are of different kinds.

    Args:
        flags: Flags of one case, the most unusual property first.

    Returns:
        The first flag of each kind, those about labels before the expected Dice and the image; then the second ones, and so on.

    Examples:
        >>> kinds = [FlagKind.IMAGE, FlagKind.IMAGE, FlagKind.VOLUME]
        >>> [flag.kind.value for flag in ordered_flags(Flag(kind, "", "", "") for kind in kinds)]
        ['volume', 'image', 'image']
    """
    rounds: list[tuple[int, int, int, Flag]] = []
    seen: Counter[FlagKind] = Counter()
    for index, flag in enumerate(flags):
        rounds.append((seen[flag.kind], _CLEAREST_FIRST.index(flag.kind), index, flag))
        seen[flag.kind] += 1
    return tuple(flag for *_, flag in sorted(rounds, key=lambda one: one[:3]))


@dataclass(frozen=True)
class LabelEstimate:
    """Estimates for one label or region of a prediction; None for what is not known.

    Attributes:
        name: Name of the label or region.
        dice: Expected Dice with the reference, 0 to 1; None if the label was not found.
        dice_low: Lower end of its interval.
        dice_high: Upper end of its interval.
        volume_low_ml: Lower end of the interval of the volume in the reference, in ml; None for a case with a flag.
        volume_high_ml: Upper end of this interval; None for a case with a flag and if it is unbounded.
    """

    name: str
    dice: float | None = None
    dice_low: float | None = None
    dice_high: float | None = None
    volume_low_ml: float | None = None
    volume_high_ml: float | None = None


@dataclass(frozen=True)
class CaseQuality:
    """Estimates and flags of one prediction.

    Attributes:
        labels: One entry per label or region that the quality model knows; empty for a model without one.
        flags: Reasons to review the prediction, as `ordered_flags` lists them; empty for a usual prediction.
        coverage: Probability with which each interval holds the true value; None without intervals, and for a case with a flag,
            because nothing was learned about such cases.
    """

    labels: tuple[LabelEstimate, ...] = ()
    flags: tuple[Flag, ...] = ()
    coverage: float | None = None

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the quality that `dataclasses.asdict` made plain, as in a file of JSON.

        Args:
            values: The values.

        Returns:
            The quality.
        """
        flags = tuple(Flag(**{**one, "kind": FlagKind(one["kind"])}) for one in values["flags"])
        return cls(tuple(LabelEstimate(**one) for one in values["labels"]), flags, values["coverage"])

    def with_flags(self, flags: Iterable[Flag]) -> Self:
        """Return the estimates with other flags, and without what does not hold for a case with flags.

        Args:
            flags: All flags of the case.

        Returns:
            The quality. If there are flags, volumes have no interval, there is no coverage, and the interval of the Dice starts
            at 0 unless a low expected Dice is the only reason.

        Examples:
            >>> quality = CaseQuality((LabelEstimate("liver", 0.93, 0.9, 0.95, 1400.0, 1600.0),), coverage=0.9)
            >>> quality.with_flags([Flag(FlagKind.BORDER, "voxels of liver at the border", "9 %", "at most 2 %")]).label("liver")
            LabelEstimate(name='liver', dice=0.93, dice_low=0.0, dice_high=0.95, volume_low_ml=None, volume_high_ml=None)
        """
        flags = ordered_flags(flags)
        if not flags:
            return replace(self, flags=())
        unlike = any(flag.kind is not FlagKind.DICE for flag in flags)
        labels = tuple(
            replace(
                one,
                dice_low=0.0 if unlike and one.dice_low is not None else one.dice_low,
                volume_low_ml=None,
                volume_high_ml=None,
            )
            for one in self.labels
        )
        return replace(self, labels=labels, flags=flags, coverage=None)

    @property
    def to_review(self) -> bool:
        """Whether there is a reason to review the prediction."""
        return bool(self.flags)

    @property
    def has_intervals(self) -> bool:
        """Whether there is an interval that holds with the coverage."""
        ends = (end for one in self.labels for end in (one.dice_low, one.volume_low_ml, one.volume_high_ml))
        return self.coverage is not None and any(end is not None for end in ends)

    def label(self, name: str) -> LabelEstimate:
        """Return the estimates for one label.

        Args:
            name: Name of the label or region.

        Returns:
            The estimates, without values if the quality model does not know the label.

        Examples:
            >>> quality = CaseQuality((LabelEstimate("liver", dice=0.93),))
            >>> quality.label("liver").dice, quality.label("spleen").dice
            (0.93, None)
        """
        return next((one for one in self.labels if one.name == name), LabelEstimate(name))
