"""Settings of the linking of slices' instances; free of torch and of arrays."""

from __future__ import annotations

from pydantic import Field

from medseg.config import Config


class LinkSettings(Config):
    """How instances of slices are linked.

    Attributes:
        min_iou: overlap from which instances of neighbouring slices may be one object.
        min_containment: share of the smaller one inside the larger from which they may be one object whatever their
            IoU: objects end in caps that are much smaller than the slice before.
        gap: slices in which an object may be missing.
        max_fragment_slices: slices up to which a track that another one covers is taken for a piece of it; 0 keeps all.
        min_slices: objects in fewer slices are left out.
    """

    min_iou: float = Field(0.2, gt=0, le=1)
    min_containment: float = Field(0.6, gt=0, le=1)
    max_gap_slices: int = Field(1, ge=0)
    max_fragment_slices: int = Field(2, ge=0)
    min_slices: int = Field(1, ge=1)
