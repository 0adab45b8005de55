"""How each property of an image or a prediction is compared with usual ones, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medseg.inference.quality.case_quality import Flag, FlagKind

_SMALLEST = 1e-6  # of a property on a logarithmic scale


@dataclass(frozen=True)
class FeatureKind:
    """A kind of property.

    Attributes:
        flag: Kind of the flag; None for a property that only serves estimates.
        field: Name of the property, with a place for what it was measured on.
        least: Smallest deviation that counts as unusual spread, on the scale on which values are compared. It keeps a property that
            is equal in all training cases from being flagged for tiny differences.
        log: Whether values are compared by their ratio.
        low: Whether small values are unusual.
        high: Whether large values are unusual.
        unit: Unit of the value, with a space before it.
        percent: Whether values are fractions that are shown in percent.
        of_label: Whether it is a property of a label instead of the image.
    """

    flag: FlagKind | None
    field: str
    least: float
    log: bool = False
    low: bool = True
    high: bool = True
    unit: str = ""
    percent: bool = False
    of_label: bool = True

    def scaled(self, value: float) -> float:
        """Return a value on the scale on which values are compared."""
        return math.log(max(value, _SMALLEST)) if self.log else value

    def flagged(self, subject: str, value: float, low: float, high: float) -> Flag:
        """Return the flag for an unusual value.

        Args:
            subject: What the value was measured on.
            value: The value.
            low: Smallest usual value, on the scale on which values are compared.
            high: Largest usual value, likewise.

        Returns:
            The flag.
        """
        assert self.flag is not None
        if self.flag is FlagKind.EMPTY:
            return Flag(self.flag, subject, "no voxel", "a label that is rarely absent", learned=True)
        ends = [math.exp(end) if self.log else end for end in (low, high)]
        if self.percent:
            ends = [min(max(end, 0.0), 1.0) for end in ends]
        first, last = map(self._text, ends)
        if self.flag is FlagKind.COMPONENTS:
            last = str(math.floor(ends[1]))
        if not self.low:
            expected = f"at most {last}"
        elif not self.high:
            expected = f"at least {first}"
        else:
            expected = f"{first} to {last}"
        field, found = self.field.format(subject), self._text(value) + self.unit
        return Flag(self.flag, field, found, expected + self.unit, learned=True)

    def _text(self, value: float) -> str:
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"


def _image(field: str, least: float, **more: Any) -> FeatureKind:
    return FeatureKind(FlagKind.IMAGE, field, least, of_label=False, **more)


FEATURE_KINDS = {
    "voxel size": _image("voxel size along {}", 0.05, log=True, unit=" mm"),
    "field of view": _image("field of view along {}", 0.05, log=True, unit=" mm"),
    "brightness": _image("mean intensity of {} between its usual extremes", 0.02),
    "edges": _image("correlation of intensity and differences in {}", 0.02),
    "contrast": _image("distance between the quartiles of {} relative to its usual extremes", 0.02),
    "noise": _image("noise of {}", 0.05, log=True),
    "sharpness": _image("sharpness of {}", 0.02, log=True),
    "constant part": _image("constant part of {}", 0.02, low=False, percent=True),
    "one-sidedness": _image("difference between the halves of {}", 0.02, low=False),
    "intensity": FeatureKind(FlagKind.IMAGE, "mean intensity rank of {}", 0.02),
    "empty": FeatureKind(FlagKind.EMPTY, "{}", 0.05, low=False),
    "volume": FeatureKind(FlagKind.VOLUME, "volume of {}", 0.05, log=True, unit=" ml"),
    "components": FeatureKind(FlagKind.COMPONENTS, "connected components of {}", 0.5, log=True, low=False),
    "border": FeatureKind(
        FlagKind.BORDER, "voxels of {} at the border of the scan", 0.005, low=False, percent=True
    ),
    "extent": FeatureKind(FlagKind.SHAPE, "extent of {} relative to its volume", 0.02, log=True),
    "expected soft Dice": FeatureKind(None, "expected soft Dice of {}", 0.005),
    "confidence": FeatureKind(None, "mean probability inside {}", 0.005),
    "uncertain band": FeatureKind(None, "uncertain volume of {} relative to its volume", 0.02, log=True),
    "expected Dice": FeatureKind(FlagKind.DICE, "expected Dice of {} for a usual case", 0.005, high=False),
}
"""Kinds by the key of the features of a case."""
