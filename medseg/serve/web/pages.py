"""The pages of the service, which load nothing from another host."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from medseg.runtime.machine import installed_version
from medseg.serve.dicomweb.series_requests import MOST_STUDIES
from medseg.serve.job import ARCHIVE, FORMATS, SINGLE_FILES
from medseg.viz.html_templates import render_html
from medseg.viz.viewer.viewer_page import embedded_json, script_hash_source, viewer_scripts

_FOLDER = Path(__file__).parent / "templates"
_REPORT_SCRIPT = Path(__file__).parents[2] / "report" / "templates" / "report.js"


@cache
def content_policy() -> str:
    """Return the content security policy of all pages.

    Reports are shown in a frame of the page, which inherits the policy; it therefore admits the scripts of reports and
    viewers, by their hashes.
    """
    scripts = (_script(), _REPORT_SCRIPT.read_text(encoding="utf-8"), *viewer_scripts())
    admitted = " ".join(f"'{script_hash_source(one)}'" for one in scripts)
    return (
        f"default-src 'none'; script-src {admitted}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'self' data:; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@cache
def start_page(dicomweb: bool = False) -> str:
    """Return the page on which a study is uploaded or chosen and its result is shown; it holds no data of jobs.

    Args:
        dicomweb: Whether studies of a DICOMweb server can be chosen.

    Returns:
        HTML text.
    """
    values = {
        "formats": [one.removeprefix(".") for one in FORMATS],
        "suffixes": [*SINGLE_FILES, ARCHIVE],
        "mostStudies": MOST_STUDIES,
    }
    return _rendered("start.html.j2", script=_script(), values=embedded_json(values), dicomweb=dicomweb)


def api_page(schema: dict[str, Any]) -> str:
    """Return a page that lists the requests of the API.

    Args:
        schema: The OpenAPI schema.

    Returns:
        HTML text.
    """
    requests = [
        (method.upper(), path, operation.get("summary", ""))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return _rendered("api.html.j2", requests=requests)


def _script() -> str:
    return (_FOLDER / "start.js").read_text(encoding="utf-8")


def _rendered(template: str, **values: Any) -> str:
    return render_html(_FOLDER / template, version=installed_version(), **values)
