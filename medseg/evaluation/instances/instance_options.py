"""How instances are matched, and the size classes in which they are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg.errors import ConfigError
from medseg.evaluation.instances.size_classes import checked_bounds

MATCHED_ABOVE = 0.5


@dataclass(frozen=True)
class InstanceOptions:
    """How instances are matched, and the size classes in which they are counted.

    Attributes:
        detection_iou: IoU from which a reference counts as detected; 0 for any shared voxel.
        matching_iou: IoU above which a prediction and a reference are a pair. Below 0.5 several predictions can reach it with one
            reference; pairs are then formed from the highest IoU downwards.
        size_bounds_mm3: Volumes in mm³ (pixels of natural images) between classes of size for which detection is counted
            separately; empty for no classes.

    >>> InstanceOptions(size_bounds_mm3=(10, 500)).size_bounds_mm3
    (10.0, 500.0)
    """

    detection_iou: float = 0.0
    matching_iou: float = MATCHED_ABOVE
    size_bounds_mm3: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.detection_iou <= 1:
            raise ConfigError(
                f"detection_iou: found {self.detection_iou}, expected 0 to 1. Use 0 for any shared voxel."
            )
        if not 0 <= self.matching_iou < 1:
            raise ConfigError(f"matching_iou: found {self.matching_iou}, expected 0 to less than 1. Use 0.5.")
        object.__setattr__(self, "size_bounds_mm3", checked_bounds(self.size_bounds_mm3))

    def to_plain(self) -> dict[str, Any]:
        """Return the options as plain values for ``summary.json``."""
        plain: dict[str, Any] = {"detection_iou": self.detection_iou, "matching_iou": self.matching_iou}
        return plain | ({"size_bounds_mm3": list(self.size_bounds_mm3)} if self.size_bounds_mm3 else {})


DEFAULT_INSTANCE_OPTIONS = InstanceOptions()
"""What ``medseg evaluate --instances`` computes without options."""
