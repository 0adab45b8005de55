"""Toy trainings: four small phantoms, a network of some hundred weights, eight steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.helpers.runs import MakeExperiment, toy_experiment, write_toy_data


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the dataset ``data``; runs made in it share their prepared cases."""
    folder = tmp_path_factory.mktemp("trainings")
    write_toy_data(folder, cases=4)
    return folder


@pytest.fixture(scope="session")
def make_experiment(workplace: Path) -> MakeExperiment:
    """Factory of toy experiments: ``make_experiment("train.steps=3")``."""
    train = {"steps": 8, "batch_size": 2, "report_every": 1, "validate_every": 4}
    return partial(toy_experiment, workplace, folds=2, **train)
