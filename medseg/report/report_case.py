"""A case of a report: where its files are, and what the page shows of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import DataError
from medseg.viz.thumbnails import thumbnail
from medseg.viz.viewer.viewer_case import ViewerCase


@dataclass(frozen=True)
class ReportCase:
    """A case and how its volumes are read, which happens case by case.

    Attributes:
        id: Case id.
        open: Reads the volumes for the viewer; None if there is no image to look at.
        notes: Sentences about this case that the page shows, such as quality flags.
    """

    id: str
    open: Callable[[], ViewerCase] | None = None
    notes: tuple[str, ...] = field(default=())

    def page_content(self, max_bytes: int) -> dict[str, Any]:
        """Return a thumbnail and the content of the viewer.

        Args:
            max_bytes: Bytes for the volumes in the page.

        Returns:
            ``thumbnail``: a PNG in base64; ``viewer``: values for the viewer, None without an image; ``problem``: why the
            volumes cannot be shown, empty if they can.
        """
        if self.open is None:
            return {"thumbnail": "", "viewer": None, "problem": ""}
        try:
            case = self.open()
            first = next(iter(case.maps.values()), None)
            on_grid = first is not None and first.grid.shape == case.image.grid.shape
            preview = thumbnail(case.image, first if on_grid else None)
            return {
                "thumbnail": base64.b64encode(preview).decode(),
                "viewer": case.payload(max_bytes),
                "problem": "",
            }
        except DataError as error:  # the report of the other cases is still wanted
            return {"thumbnail": "", "viewer": None, "problem": str(error)}
