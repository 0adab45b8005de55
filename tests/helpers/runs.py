"""Toy trainings: a few small phantoms, a network of some hundred weights, a few steps, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.config import apply_overrides
from medseg.data.datasets.phantom import write_phantoms
from medseg.experiment.experiment import Experiment

MakeExperiment = Callable[..., Experiment]


@contextmanager
def one_thread() -> Iterator[None]:
    """Bit-equal results are promised for equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Run every test of a folder whose ``conftest`` imports this fixture with one thread of torch.

    Toy networks gain nothing from more, and results are equal only for equal numbers of threads.
    """
    with one_thread():
        yield


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Context in which longer files cannot be written, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_toy_data(folder: Path, cases: int) -> None:
    write_phantoms(folder / "data", cases=cases, shape=(24, 20, 18), spacing=(13, 14, 14))


def toy_experiment(folder: Path, *overrides: str, folds: int, **train: Any) -> Experiment:
    """An experiment on the phantoms of `write_toy_data`."""
    values: dict[str, Any] = {
        "name": "toy",
        "data": {"path": str(folder / "data"), "folds": folds},
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1, "dropout": 0.2},
        "patch": {"size": [16, 16, 16]},
        "train": {"validation_batches": 1, "save_every": 2, **train},
    }
    return Experiment.parse(apply_overrides(values, list(overrides)), source="toy")
