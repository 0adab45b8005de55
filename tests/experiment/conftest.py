"""A toy cross-validation: six small phantoms, three folds, six steps each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.helpers.runs import MakeExperiment, one_thread, single_thread, toy_experiment, write_toy_data

__all__ = ["single_thread"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the dataset ``data``; runs created in it share their prepared cases."""
    folder = tmp_path_factory.mktemp("folds")
    write_toy_data(folder, cases=6)
    return folder


@pytest.fixture(scope="session")
def make_experiment(workplace: Path) -> MakeExperiment:
    """A factory of toy experiments: ``make_experiment("train.steps=3")``."""
    train = {"steps": 6, "report_every": 2, "validate_every": 6, "optimizer": {"lr": 0.05}}
    return partial(toy_experiment, workplace, folds=3, **train)


@pytest.fixture(scope="session")
def whole(make_experiment: MakeExperiment, workplace: Path) -> Path:
    """A cross-validation that was trained and aggregated without interruption; tests must not change it."""
    store = workplace / ".prepared"
    before = {path.name for path in store.glob("*")}
    with one_thread():
        list(make_experiment().cross_validation(workplace / "whole"))
    stored = sorted({path.name for path in store.glob("*")} - before)
    (workplace / "stored_by_whole.txt").write_text("\n".join(stored))
    return workplace / "whole"
