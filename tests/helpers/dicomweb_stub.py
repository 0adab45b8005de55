"""A small DICOMweb server in this process, which also gives the wrong answers of broken ones."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom

from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.dicom_series import save_series

_BOUNDARY = "part"
_PARTS = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
_JSON = "application/dicom+json"
_STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "PatientName")
_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription")


@dataclass
class Stub:
    """The content of the server, what it was asked, and how it misbehaves.

    Attributes:
        address: Address of the services.
        images: Files that it holds, by SOPInstanceUID.
        authorization: Header that it requires; empty for none.
        fault: How it misbehaves; empty for not at all.
        requests: Method and path of each request.
        headers: Headers of the last request.
        released: Ends the waiting of slow answers.
    """

    address: str = ""
    images: dict[str, bytes] = field(default_factory=dict)
    authorization: str = ""
    fault: str = ""
    requests: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, folder: Path) -> pydicom.Dataset:
        """Take the files of a folder and return the header of one of them."""
        for file in sorted(folder.iterdir()):
            self.take(file.read_bytes())
        return pydicom.dcmread(file, stop_before_pixels=True)

    def take(self, content: bytes) -> pydicom.Dataset:
        dataset = pydicom.dcmread(io.BytesIO(content))
        self.images[str(dataset.SOPInstanceUID)] = content
        return dataset

    def datasets(self, **wanted: str) -> list[pydicom.Dataset]:
        """Return the headers of images with these values."""
        found = [pydicom.dcmread(io.BytesIO(one), stop_before_pixels=True) for one in self.images.values()]
        return [
            one for one in found if all(str(one.get(name, "")) == value for name, value in wanted.items())
        ]


@contextmanager
def dicomweb_stub() -> Iterator[Stub]:
    """A server on a free port of this machine."""
    stub = Stub()

    class Handler(_Handler):
        content = stub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.address = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def ct_series(folder: Path, slices: int = 8, **attributes: object) -> Path:
    """Write a small CT series."""
    data = np.random.default_rng(0).integers(-200, 300, (1, 12, 10, slices)).astype(np.int16)
    return save_series(folder, Volume(data, Grid.from_spacing((12, 10, slices), (1, 1, 2))), **attributes)


class _Handler(BaseHTTPRequestHandler):
    content: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self._begin():
            return
        parts = urlsplit(self.path)
        words = parts.path.removeprefix("/dicom-web/").split("/")
        wanted = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if len(words) == 4:  # studies/…/series/…
            self._retrieve(words[1], words[3])
        elif words[-1] == "instances":
            self._list(self.content.datasets(SOPInstanceUID=wanted["SOPInstanceUID"]), ("SOPInstanceUID",))
        elif len(words) == 3:  # studies/…/series
            self._list(self.content.datasets(StudyInstanceUID=words[1]), _SERIES, "SeriesInstanceUID")
        else:
            names = ("StudyInstanceUID", "AccessionNumber", "StudyDate")
            filters = {name: wanted[name] for name in names if name in wanted}
            self._list(self.content.datasets(**filters), _STUDY, "StudyInstanceUID")

    def do_POST(self) -> None:
        body = self._body()
        if not self._begin():
            return
        marker = self.headers["Content-Type"].rpartition("boundary=")[2].strip('"').encode()
        dataset = self.content.take(body.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--" + marker)[0])
        item = {
            "00081150": {"vr": "UI", "Value": [str(dataset.SOPClassUID)]},
            "00081155": {"vr": "UI", "Value": [str(dataset.SOPInstanceUID)]},
        }
        fault = self.content.fault
        if fault in ("refuse", "forgotten"):
            del self.content.images[str(dataset.SOPInstanceUID)]
        if fault in ("refuse", "duplicate"):
            item["00081197"] = {"vr": "US", "Value": [0xA700 if fault == "refuse" else 0x0111]}  # type: ignore[list-item]
            self._answer(json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode(), _JSON, 409)
        elif fault in ("unconfirmed", "forgotten"):
            self._answer(b"", _JSON)
        else:
            self._answer(
                json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode(), f"{_JSON}; charset=utf-8"
            )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _begin(self) -> bool:
        """Note a request, and return whether it is answered as usual."""
        stub = self.content
        stub.requests.append(f"{self.command} {self.path}")
        stub.headers = dict(self.headers)
        if stub.authorization and self.headers.get("Authorization") != stub.authorization:
            self._answer(b"", _JSON, 401)
        elif stub.fault.isdecimal():
            self._answer(b"Doe^Jane", "text/plain", int(stub.fault))
        elif stub.fault == "html":
            self._answer(b"<html>log in, Doe^Jane</html>", "text/html")
        elif stub.fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif stub.fault == "slow":
            stub.released.wait(60)
            self.close_connection = True
        else:
            return True
        return False

    def _answer(self, body: bytes, kind: str, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _list(
        self, found: list[pydicom.Dataset], names: tuple[str, ...], group: str = "SOPInstanceUID"
    ) -> None:
        items: dict[str, dict[str, Any]] = {}
        counts: dict[str, int] = {}
        for one in found:
            key = str(one.get(group))
            listed = pydicom.Dataset()
            for name in names:
                if name in one:
                    listed[name] = one[name]
            items[key] = listed.to_json_dict()
            counts[key] = counts.get(key, 0) + 1
        if group == "SeriesInstanceUID":
            for key, item in items.items():
                item["00201209"] = {"vr": "IS", "Value": [counts[key]]}
        fault = self.content.fault
        if fault == "wrong list":
            self._answer(b'[{"0020000D": {"vr": "UI", "Value": ["Doe^Jane"]}}]', _JSON)
        elif fault == "no list":
            self._answer(b'"Doe^Jane"', _JSON)
        else:
            self._answer(json.dumps(list(items.values())).encode() if items else b"", _JSON)

    def _retrieve(self, study: str, series: str) -> None:
        fault = self.content.fault
        if fault == "gone":
            self._answer(b"", _JSON, 404)
            return
        wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        files = [self.content.images[str(one.SOPInstanceUID)] for one in self.content.datasets(**wanted)]
        if fault == "other series":
            others = [one for one in self.content.datasets() if str(one.SeriesInstanceUID) != series]
            files[-1] = self.content.images[str(others[0].SOPInstanceUID)]
        elif fault == "incomplete":
            files = files[:-1]
        elif fault == "no image":
            files[0] = b"Doe^Jane"
        head = f"\r\n--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file for file in files) + f"\r\n--{_BOUNDARY}--\r\n".encode()
        if fault == "truncated":  # without an error of HTTP
            self._answer(body[: len(body) * 2 // 3], _PARTS)
        elif fault == "cut":
            self._answer(body[: len(body) * 2 // 3], _PARTS, length=len(body))
            self.close_connection = True
        elif fault == "empty":
            self._answer(b"", _PARTS)
        elif fault == "slow images":
            self._answer(body[: len(body) // 2], _PARTS, length=len(body))
            self.wfile.flush()
            self.content.released.wait(60)
            self.close_connection = True
        elif fault == "json images":
            self._answer(b"[]", _JSON)
        else:
            self._answer(body, _PARTS)
