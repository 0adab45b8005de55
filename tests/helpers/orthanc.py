"""Orthanc, an image archive with DICOMweb, in a temporary folder on a free port."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.extras import program

USER, PASSWORD = "ann", "secret"
_PLUGIN = "libOrthancDicomWeb.so*"
_PATIENCE = 120.0


def _orthanc() -> tuple[str, Path]:
    """Return the program and its plugin; skip the test without the latter."""
    found = program("Orthanc")
    assert found is not None, 'mark the test with extra("Orthanc")'
    root = Path(found).resolve().parents[1]
    plugins = sorted(
        file for place in ("share", "lib") for file in (root / place / "orthanc").glob(f"plugins/{_PLUGIN}")
    )
    if not plugins:
        pytest.skip("needs the DICOMweb plugin of Orthanc: apt-get install orthanc-dicomweb")
    return found, plugins[0]


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """A server that requires a user and a password; its address of the DICOMweb services."""
    server, plugin = _orthanc()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _await(process, port, folder / "log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))
