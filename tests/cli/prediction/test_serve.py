from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from medseg.cli.main import main
from medseg.cli.prediction.serve import _address, _shown
from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from medseg.serve.web import run_server
from medseg.serve.worker import model_worker
from tests.helpers.dicomweb_stub import dicomweb_stub
from tests.helpers.services import ALICE, InlineWorker, save_toy_model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such folder, expected a model folder"),
        (["key=value"], "MODEL: found none"),
        ([".", "--port", "70000"], "--port: found 70000"),
        ([".", "--port", "-1"], "expected a whole number"),
        ([".", "--max-upload", "2"], "--max-upload: found '2', a number without a unit"),
        ([".", "--max-disk", "x"], "--max-disk: found 'x'"),
        ([".", "--max-memory", "x"], "--max-memory: found 'x'"),
        ([".", "--timeout", "60"], "--timeout: found '60'"),
        ([".", "--keep", "0h"], "--keep: found '0h'"),
        ([".", "--max-queue", "0"], "expected a whole number from 1"),
        ([".", "--token-file", "nowhere"], "nowhere: no such file"),
        ([".", "device=cpu"], "Give --device instead"),
        ([".", "--dicomweb", "pacs"], "--dicomweb: found 'pacs', expected the address"),
        ([".", "--dicomweb", "http://ann:secret@pacs"], "Set MEDSEG_DICOMWEB_USER"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["serve", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert (code, message in capsys.readouterr().err) == (1, True)


def test_a_token_of_the_environment_that_is_too_short_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSEG_TOKEN", "secret")
    assert main(["serve", "."]) == 1
    error = capsys.readouterr().err
    assert "MEDSEG_TOKEN: token 1: found 6 characters" in error
    assert "secret" not in error.replace("secrets.", "").replace("import secrets", "")


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(tmp_path)]) == 1
    assert "pip install 'medseg[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "token", "address"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:8000/"),
        ("::1", "abc", "http://[::1]:8000/#token=abc"),
    ],
)
def test_the_address_holds_a_token_that_was_created(host: str, token: str, address: str) -> None:
    assert _address(host, 8000, token) == address


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_names_models_and_address_once_it_is_ready(
    host: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_toy_model(tmp_path / "model")
    monkeypatch.setattr(model_worker, "ModelWorker", lambda _: InlineWorker(model))
    listen = run_server.listen
    monkeypatch.setattr(run_server, "listen", lambda _, port: listen("127.0.0.1", port))
    monkeypatch.setattr(run_server._Server, "run", lambda *_, **__: None)  # as if a signal came at once
    words = [str(model), "--host", host, "--port", "0", "--folder", str(tmp_path / "jobs")]
    assert main(["serve", *words]) == 0
    out = capsys.readouterr().out
    assert "models: toy" in out
    assert ("not encrypted" in out) == warned
    assert re.search(rf"open: http://{host}:\d+/#token=\S{{20,}}", out)
    monkeypatch.setenv("MEDSEG_TOKEN", ALICE)
    assert main(["serve", *words]) == 0
    out = capsys.readouterr().out
    assert "token" not in out.partition("open: ")[2]
    assert ALICE not in out


def test_a_missing_package_for_dicomweb_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    assert main(["serve", str(tmp_path), "--dicomweb", "http://127.0.0.1:8042"]) == 1
    assert "found no dicomweb-client" in capsys.readouterr().err


def test_the_start_prints_the_dicomweb_server_and_what_is_wrong_with_it() -> None:
    with dicomweb_stub() as stub:
        server = DicomWeb(Address(stub.address))
        assert _shown(server) == f"DICOMweb: {stub.address}"
        stub.fault = "401"
        assert "does not answer yet" in _shown(server)
        assert "Set MEDSEG_DICOMWEB_USER" in _shown(server)
