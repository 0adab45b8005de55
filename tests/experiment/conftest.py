"""A toy cross-validation: six small phantoms, three folds, six steps each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.config import apply_overrides
from medseg.data.phantom import write_phantoms
from medseg.experiment import Experiment

MakeExperiment = Callable[..., Experiment]


@contextmanager
def one_thread() -> Iterator[None]:
    """Bit-equal results are promised for equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the dataset ``data``; runs made in it share their prepared cases."""
    folder = tmp_path_factory.mktemp("folds")
    write_phantoms(folder / "data", cases=6, shape=(24, 20, 18), spacing=(13, 14, 14))
    return folder


@pytest.fixture(scope="session")
def make_experiment(workplace: Path) -> MakeExperiment:
    """Factory of toy experiments: ``make_experiment("train.steps=3")``."""

    def make(*overrides: str) -> Experiment:
        values: dict[str, Any] = {
            "name": "toy",
            "data": {"path": str(workplace / "data"), "folds": 3},
            "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1, "dropout": 0.2},
            "patch": {"size": [16, 16, 16]},
            "train": {
                "steps": 6,
                "report_every": 2,
                "validate_every": 6,
                "validation_batches": 1,
                "save_every": 2,
                "optimizer": {"lr": 0.05},
            },
        }
        return Experiment.parse(apply_overrides(values, list(overrides)), source="toy")

    return make


@pytest.fixture(scope="session")
def whole(make_experiment: MakeExperiment, workplace: Path) -> Path:
    """A cross-validation that was trained and gathered without interruption; not to be changed."""
    with one_thread():
        list(make_experiment().cross_validation(workplace / "whole"))
    return workplace / "whole"
