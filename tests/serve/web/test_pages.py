"""The page, used in a browser."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

import medseg
from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from medseg.serve.web.run_server import listen
from tests.helpers.browser import Browser, needs_chromium
from tests.helpers.dicom_series import save_series
from tests.helpers.dicomweb_stub import ct_series, dicomweb_stub
from tests.helpers.services import ALICE, Running, image_bytes, running

GIVE = """(files => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name));
  }
  const input = document.getElementById(INPUT);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change"));
})(FILES)"""


def await_image(browser: Browser, left: float, top: float, right: float, bottom: float) -> None:
    """Wait until something is drawn in the part of the window that the viewer leaves black while it loads."""
    end = time.monotonic() + 120
    while True:
        pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
        rows = slice(int(top + 0.3 * (bottom - top)), int(top + 0.8 * (bottom - top)))
        columns = slice(int(left + 0.05 * (right - left)), int(left + 0.65 * (right - left)))
        if pixels[rows, columns].min() < 40 and pixels[rows, columns].std() > 15:
            return
        assert time.monotonic() < end, f"nothing was drawn; errors: {browser.errors}"
        time.sleep(0.1)


@pytest.fixture
def address(service: Running) -> Iterator[str]:
    with listening(service) as found:
        yield found


@contextmanager
def listening(service: Running) -> Iterator[str]:
    """Address of a service on a free port of this machine."""
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(
            uvicorn.Config(service.client.app, log_config=None, access_log=False, lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def give(browser: Browser, element: str, files: dict[str, bytes]) -> None:
    """Choose files on the page, as a user does."""
    content = [(name, base64.b64encode(data).decode()) for name, data in files.items()]
    browser.run(GIVE.replace("INPUT", json.dumps(element)).replace("FILES", json.dumps(content)))


@needs_chromium
@pytest.mark.slow
def test_a_study_is_sent_and_its_result_is_seen(address: str, service: Running, tmp_path: Path) -> None:
    with Browser() as browser:
        browser.open(f"{address}#token={ALICE}", "document.body?.dataset.ready === 'true'")
        assert browser.run("location.hash") == ""
        assert browser.run("document.getElementById('labels').textContent") == "liver, spleen"
        give(browser, "file", {"Doe_Jane.nii.gz": image_bytes(tmp_path)})
        browser.wait_for("document.querySelector('#rows tr')?.dataset.state === 'done'")
        browser.wait_for("document.querySelector('#result iframe')?.srcdoc.includes('button class')")
        assert "Doe_Jane" not in browser.run("document.body.innerHTML")

        data = np.random.default_rng(0).integers(-200, 300, (1, 12, 10, 8)).astype(np.int16)
        volume = medseg.Volume(data, medseg.Grid.from_spacing((12, 10, 8), (1, 1, 2)))
        series = save_series(tmp_path / "series", volume)
        give(browser, "folder", {file.name: file.read_bytes() for file in series.iterdir()})
        browser.wait_for("[...document.querySelectorAll('#rows tr')].length === 2")
        browser.wait_for("document.querySelector('#rows tr').dataset.state === 'done'")

        give(browser, "file", {"notes.txt": b"no image"})
        browser.wait_for("document.getElementById('problem').textContent.includes('unknown suffix')")
        jobs = service.client.get("/api/jobs").json()
        browser.run(
            "[...document.querySelectorAll('#rows button')].filter((one) => one.textContent === 'delete')[0].click()"
        )
        browser.wait_for("[...document.querySelectorAll('#rows tr')].length === 1")
        assert service.client.get(f"/api/jobs/{jobs[0]['id']}").status_code == 404
        assert all(url.startswith(address) for url in browser.requests)
        assert not [text for text in browser.errors if "415" not in text]


@needs_chromium
@pytest.mark.slow
def test_the_viewer_works_in_the_frame_of_the_page(address: str, tmp_path: Path) -> None:
    """The content policy of the page holds in the frame, too, so that the viewer needs to be admitted by it."""
    with Browser() as browser:
        browser.open(address)
        browser.run(f"document.getElementById('token').value = {ALICE!r}")
        browser.run("document.querySelector('#login button').click()")
        browser.wait_for("document.body?.dataset.ready === 'true'")
        give(browser, "file", {"ct.nii.gz": image_bytes(tmp_path)})
        browser.wait_for("document.querySelector('#result iframe') !== null")
        browser.run("document.querySelector('#result iframe').scrollIntoView()")
        place = "document.querySelector('#result iframe').getBoundingClientRect()"
        await_image(browser, *browser.run(f"['left', 'top', 'right', 'bottom'].map((side) => {place}[side])"))
        assert not browser.errors


@needs_chromium
@pytest.mark.slow
def test_a_series_of_a_dicomweb_server_is_chosen(toy_model: Path, tmp_path: Path) -> None:
    with (
        dicomweb_stub() as stub,
        running(tmp_path / "service", toy_model, dicomweb=DicomWeb(Address(stub.address))) as service,
        listening(service) as address,
        Browser() as browser,
    ):
        header = stub.add(
            ct_series(tmp_path / "ct", PatientName="Doe^Jane", StudyDescription="<b>abdomen</b>")
        )
        browser.open(f"{address}#token={ALICE}", "document.body?.dataset.ready === 'true'")
        search = "document.getElementById('wanted').value = WANTED; document.querySelector('#search button').click()"
        browser.run(search.replace("WANTED", "'B2'"))
        browser.wait_for("document.getElementById('found').textContent === 'no study found'")
        browser.run(search.replace("WANTED", f"'{header.StudyInstanceUID}'"))
        browser.wait_for("document.querySelector('#studies tbody').textContent.includes('<b>abdomen</b>')")
        browser.run("document.querySelector('#studies tbody button').click()")
        browser.wait_for("document.querySelector('#studies tr.series')?.textContent.includes('8 images')")
        browser.run("document.querySelector('#studies tr.series button').click()")
        browser.wait_for("document.querySelector('#rows tr')?.textContent.includes('stored on the server')")
        browser.wait_for("document.querySelector('#result iframe') !== null")
        assert len(stub.datasets(Modality="SEG")) == 1
        assert "Doe^Jane" not in browser.run("document.body.innerHTML")  # which holds images in base64
        stub.fault = "401"
        browser.run(search.replace("WANTED", "'A1'"))
        browser.wait_for("document.getElementById('problem').textContent.includes('MEDSEG_DICOMWEB_USER')")
        assert all(url.startswith(address) for url in browser.requests)
        assert not [text for text in browser.errors if "502" not in text]


@needs_chromium
@pytest.mark.slow
def test_a_wrong_token_is_asked_for_again(address: str) -> None:
    with Browser() as browser:
        browser.open(f"{address}#token=wrong-token-0123456789")
        browser.wait_for("!document.getElementById('problem').hidden")
        assert browser.run("document.getElementById('work').hidden") is True
        assert browser.run("document.getElementById('login').hidden") is False
