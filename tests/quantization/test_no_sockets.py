"""Quantization and prediction with OpenVINO open no socket: an audit hook watches the commands and the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.data.datasets.layouts import read_dataset

pytestmark = pytest.mark.slow


def sockets_of(folder: Path, *command: str) -> str:
    """Run a Python program and return what it and its children did with sockets."""
    log = folder / "sockets"
    log.unlink(missing_ok=True)
    environment = os.environ | {"MEDSEG_TESTS_SOCKETS": str(log)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().close()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'], check=True)",
    ],
)
def test_the_hook_sees_sockets(tmp_path: Path, code: str) -> None:
    assert "socket.__new__" in sockets_of(tmp_path, "-c", code)


@pytest.mark.extra("openvino", "nncf")
def test_quantize_and_predict_open_no_socket(make_experiment, workplace: Path, tmp_path: Path) -> None:
    for _ in make_experiment("train.steps=2").trainer(tmp_path / "run"):
        pass
    run, image = str(tmp_path / "run"), str(read_dataset(workplace / "data").cases[0].images[0])
    quantize = ("quantize", run, "--max-loss", "1", "--windows", "4")
    assert sockets_of(tmp_path, "-m", "medseg", *quantize) == ""
    for name, precision in (("float", "float32"), ("int8", "int8")):
        predict = ("predict", f"{run}/model", image, "-o", str(tmp_path / name), "--engine", "openvino")
        assert sockets_of(tmp_path, "-m", "medseg", *predict, f"precision={precision}") == ""
        assert list((tmp_path / name).glob("*.nii.gz"))
