"""A small dataset, a config file for it, and a model trained for two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms

TOY = """\
name: toy
data: {path: DATA, folds: 2}
model: {name: unet_3d, channels: [4, 8], num_blocks: 1}
patch: {size: [8, 8, 8]}
train: {steps: 2, report_every: 1, validation_batches: 1}
"""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``data``, ``toy.yaml`` and the finished run ``run``."""
    folder = tmp_path_factory.mktemp("command")
    write_phantoms(folder / "data", cases=4, shape=(14, 12, 10), spacing=(22, 24, 25))
    (folder / "toy.yaml").write_text(TOY.replace("DATA", str(folder / "data")))
    assert main(["train", str(folder / "toy.yaml"), "--run", str(folder / "run")]) == 0
    return folder
