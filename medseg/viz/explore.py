"""`show`: the interactive viewer in notebooks, a static figure elsewhere."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.labels.label_table import Labels
from medseg.storage.atomic import write_text
from medseg.viz.figures import overlay_figure
from medseg.viz.slice_images import Window
from medseg.viz.viewer.viewer_case import REFERENCE, ViewerCase
from medseg.viz.viewer.viewer_page import DEFAULT_MAX_BYTES, viewer_page
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.viz.canvas import ReportFigure

NOTEBOOK_BYTES = 3 * 10**6
"""Size of a viewer in a notebook, whose file holds all that its cells show."""
_HEIGHT = "640px"


class Viewer:
    """The interactive viewer of an image, displayed in Jupyter; it still works in a stored or exported notebook.

    The cell's output holds a static figure and the viewer as one page in a frame. The figure disappears when the viewer is
    ready; it remains where scripts do not run, for example in a notebook that is not trusted.

    Args:
        case: The image and its label maps.
        still: The static figure.

    Attributes:
        case: The image and its label maps.
        still: The static figure.
    """

    def __init__(self, case: ViewerCase, still: ReportFigure) -> None:
        self.case = case
        self.still = still

    def save(self, path: str | Path) -> None:
        """Write the viewer as an HTML page, or the static figure as .png, .svg, .pdf or .jpg.

        Args:
            path: The file; its suffix decides.

        Raises:
            DataError: The file cannot be written.
        """
        if Path(path).suffix.lower() in (".html", ".htm"):
            write_text(path, viewer_page([self.case], max_bytes=DEFAULT_MAX_BYTES))
        else:
            self.still.save(path)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Mapping[str, Any]:
        picture = self.still.png()
        page = viewer_page([self.case], max_bytes=NOTEBOOK_BYTES)
        return {"text/html": _framed(page, picture), "image/png": base64.b64encode(picture).decode()}


def show(
    image: Volume,
    labels: Volume | None = None,
    reference: Volume | None = None,
    *,
    names: Labels | None = None,
    window: Window = None,
) -> Viewer | ReportFigure:
    """Show an image, optionally with label maps over it.

    In Jupyter this is the interactive viewer: three linked planes and 3D, intensity windows, values and label names under
    the cross-hair. Elsewhere the result is a matplotlib figure of three planes. Both are saved with their method `save`.

    Args:
        image: Image in any orientation.
        labels: Label map. It is resampled for display if its grid differs.
        reference: Another label map.
        names: Names and colours of the values; by default values are called ``label_1`` and so on.
        window: Intensity window: level and width, a name such as ``"lung"``, or None; see
            `medseg.viz.slice_images.window_of`.

    Returns:
        A viewer in Jupyter, otherwise a figure.

    Raises:
        ConfigError: The window is unknown.
        DataError: A label map does not hold integers, or a value is not in `names`.

    Examples:
        >>> import numpy as np
        >>> from medseg import Grid, Volume
        >>> grid = Grid.from_spacing((16, 16, 8), spacing=(1, 1, 2))
        >>> image = Volume(np.random.default_rng(0).normal(size=(1, 16, 16, 8)), grid)
        >>> labels = Volume((image.data > 1).astype(np.uint8), grid, kind="label")
        >>> figure = show(image, labels)
        >>> len(figure.axes)  # axial, coronal and sagittal
        3
    """
    still = overlay_figure(image, labels, reference, labels=names, window=window)
    if not in_jupyter():
        return still
    given = {"labels" if reference is None else "prediction": labels, REFERENCE: reference}
    maps = {name: volume for name, volume in given.items() if volume is not None}
    return Viewer(ViewerCase("image", image, maps, labels=names, window=window), still)


def in_jupyter() -> bool:
    """Return whether the caller is in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")  # if it is not imported, this is no kernel
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def _framed(page: str, picture: bytes) -> str:
    """Return the picture and the page in a frame as HTML; a script hides the picture once the page is ready."""
    return (
        '<div class="medseg-viewer">'
        f'<img alt="static figure" style="max-width: 100%" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        f'<iframe title="interactive viewer" sandbox="allow-scripts" srcdoc="{html.escape(page)}" '
        f'style="width: 100%; height: {_HEIGHT}; border: 0; resize: vertical"></iframe>'
        f"<script>{_HIDE_PICTURE}</script></div>"
    )


_HIDE_PICTURE = (
    "addEventListener('message', (event) => {"
    " if (event.data !== 'medseg-viewer-ready') return;"
    " for (const box of document.querySelectorAll('.medseg-viewer'))"
    " if (box.querySelector('iframe')?.contentWindow === event.source) box.querySelector('img')?.remove();"
    " });"
)
