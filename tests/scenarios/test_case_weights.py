"""Case weights from a table or the config to the patches of a training that is stopped and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from medseg.config import apply_overrides
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import ConfigError, DataError
from medseg.experiment.experiment import Experiment
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]

LABELS = {f"organ_{value}": value for value in range(1, 6)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "data"
    write_phantoms(folder, cases=4, shape=(24, 20, 18), spacing=(13, 14, 14))
    write_table(folder, (1, 1, 9, 2))
    return folder


def write_table(folder: Path, weights: tuple[float, ...]) -> None:
    rows = [
        f"phantom_{number:03d}\timagesTr/phantom_{number:03d}.nii.gz\tlabelsTr/phantom_{number:03d}.nii.gz\t{weight}"
        for number, weight in enumerate(weights)
    ]
    (folder / "cases.tsv").write_text("\n".join(["case\timage_CT\tlabel\tcase_weight", *rows]) + "\n")


def experiment(data: Path, *overrides: str) -> Experiment:
    values: dict[str, Any] = {
        "name": "toy",
        "data": {"path": str(data / "cases.tsv"), "folds": 2, "labels": LABELS},
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
        "patch": {"size": [16, 16, 16]},
        "train": {"steps": 4, "report_every": 1, "save_every": 2, "validation_batches": 0},
    }
    return Experiment.parse(apply_overrides(values, list(overrides)), source="toy")


def counted(trainer: Any) -> Counter[str]:
    patches = trainer.patches.train
    return Counter(name for index in range(400) for name in patches.case_ids([index]))


def test_a_table_and_the_config_weigh_the_training_cases_of_a_fold(data: Path, tmp_path: Path) -> None:
    for fold in range(2):
        trainer = experiment(
            data, "data.case_weights={phantom_000: 3, '*1': 0.0}", f"data.fold={fold}"
        ).trainer(tmp_path / f"run{fold}")
        weights = {"phantom_000": 3, "phantom_001": 0, "phantom_002": 9, "phantom_003": 2}
        own = {case.id: weights[case.id] for case in trainer.patches.train.cases}
        found = counted(trainer)
        assert set(found) == {name for name, weight in own.items() if weight}
        for name, weight in own.items():
            assert found[name] / 400 == pytest.approx(weight / sum(own.values()), abs=0.06)


def test_a_resumed_run_keeps_the_weights_that_it_started_with(data: Path, tmp_path: Path) -> None:
    toy = experiment(data, "data.fold=all")
    write_table(data, (1, 1, 9, 2))
    list(toy.trainer(tmp_path / "whole"))
    stopped = iter(toy.trainer(tmp_path / "stopped"))
    next(stopped), next(stopped), next(stopped)
    stopped.close()
    write_table(data, (9, 1, 1, 1))
    list(toy.trainer(tmp_path / "stopped", resume=True))
    list(toy.trainer(tmp_path / "other"))
    write_table(data, (1, 1, 9, 2))
    one, two, other = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped", "other")
    )
    assert all(one[name].equal(two[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{nobody: 2}", "data.case_weights: no case matches 'nobody'"),
        ("{'*': 0}", "case weights: found 0 for all"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_preparation(
    data: Path, tmp_path: Path, weights: str, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message.replace("'", "['\"]")):
        experiment(data, f"data.case_weights={weights}").trainer(tmp_path / "run")
    assert not (tmp_path / ".prepared").exists()
