"""The page of the viewer: one HTML file with niivue, the volumes and nothing to load.

`niivue.umd.js` is niivue 0.69.0 (https://github.com/niivue/niivue, BSD-2-Clause, see ``niivue_licence.txt``), unchanged.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError, DataError
from medseg.runtime.formatting import pluralise, single_line
from medseg.runtime.memory import format_size
from medseg.storage.atomic import write_text
from medseg.viz.html_templates import render_html
from medseg.viz.viewer.viewer_case import ViewerCase

DEFAULT_MAX_BYTES = 12 * 10**6
SHELL_TITLE = "TITLE-OF-THE-VIEWER"
SHELL_CASE = "CASE-OF-THE-VIEWER"
_LEAST_OF_A_CASE = 100_000  # bytes
_FOLDER = Path(__file__).parent


def write_viewer(
    path: str | Path, cases: Sequence[ViewerCase], *, title: str = "", max_bytes: int = DEFAULT_MAX_BYTES
) -> None:
    """Write the viewer of one or more cases as one HTML file; the file is written atomically.

    Args:
        path: The HTML file.
        cases: Cases in the order of the menu.
        title: Title of the page; the name of the first case if empty.
        max_bytes: Largest size of the file; images are reduced to fit, see `viewer_page`.

    Raises:
        ConfigError: The intensity window of a case is unknown, or `max_bytes` does not suffice for the viewer and its cases.
        DataError: There is no case, a label map does not hold whole numbers, or the file cannot be written.
    """
    write_text(path, viewer_page(cases, title=title, max_bytes=max_bytes))


def viewer_page(cases: Sequence[ViewerCase], *, title: str = "", max_bytes: int = DEFAULT_MAX_BYTES) -> str:
    """Return the viewer of one or more cases as one HTML page.

    The page needs no network and may not use one: its content security policy admits its own two scripts only. It contains
    no names, such as file paths, other than those that are passed here.

    Args:
        cases: Cases in the order of the menu.
        title: Title of the page; the name of the first case if empty.
        max_bytes: Largest size of the page, of which the viewer itself takes about 1.1 MB. Images are reduced until they fit,
            and the page says so. At least 100 kB are needed for each case.

    Returns:
        HTML text.

    Raises:
        ConfigError: The intensity window of a case is unknown, or `max_bytes` does not suffice for the viewer and its cases.
        DataError: There is no case, or a label map does not hold whole numbers.
    """
    if not cases:
        raise DataError("viewer: found no case, expected at least one. Give an image.")
    each = (max_bytes - len(_niivue())) // len(cases)
    if each < _LEAST_OF_A_CASE:
        least = len(_niivue()) + _LEAST_OF_A_CASE * len(cases)
        raise ConfigError(
            f"size of the page (--max-size): found {format_size(max_bytes)}, expected at least {format_size(least)} for "
            f"{pluralise(len(cases), 'case')}, because the viewer alone takes {format_size(len(_niivue()))}. Allow more, or show "
            "fewer cases."
        )
    return _rendered(
        single_line(title or cases[0].name),
        [single_line(case.name) for case in cases],
        [embedded_json(case.payload(each)) for case in cases],
    )


def viewer_shell() -> str:
    """Return the page of the viewer with `SHELL_TITLE` and `SHELL_CASE` in place of the title and of one case.

    A page with many cases holds this once, and puts a case in when it is opened.

    Returns:
        HTML text.
    """
    return _rendered(SHELL_TITLE, [SHELL_TITLE], [SHELL_CASE])


def viewer_scripts() -> tuple[str, str]:
    """Return the texts of the scripts that a viewer runs, for the content security policy of a page that contains one."""
    script = (_FOLDER / "viewer.js").read_text(encoding="utf-8")
    return script, (_FOLDER / "niivue.umd.js").read_text(encoding="utf-8")


def _rendered(title: str, names: Sequence[str], cases: Sequence[str]) -> str:
    scripts = viewer_scripts()
    return render_html(
        _FOLDER / "viewer.html.j2",
        title=title,
        names=names,
        cases=cases,
        niivue=_niivue(),
        script=scripts[0],
        hashes=[script_hash_source(script) for script in scripts],
    )


def embedded_json(values: Any) -> str:
    """Return values as JSON for a script element; no name in it can end the element.

    Args:
        values: Plain values without NaN and infinity.

    Returns:
        JSON text.
    """
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


@cache
def _niivue() -> str:
    """Return niivue's code as it is embedded in the page: compressed, in base64."""
    return base64.b64encode(gzip.compress(viewer_scripts()[1].encode(), mtime=0)).decode()


def script_hash_source(script: str) -> str:
    """Return the hash by which a content security policy admits an inline script.

    Args:
        script: The text of the script.

    Returns:
        ``sha256-`` and the hash in base64, without quotes.
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
