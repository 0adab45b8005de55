"""Searches: each trial has the same time, a stopped search continues, and the best settings are stated honestly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.train.reports.reporting import Report
from medseg.train.settings import seconds_of
from medseg.tuning.search import Search
from medseg.tuning.settings import TuneSettings, default_values
from medseg.tuning.trial_table import Trial, TrialTable

SPACE = {
    "search": {
        "train.optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True},
        "model.channels": [[4, 8], [4, 8, 8]],
    },
    "trials": 2,
    "trial_time": "2s",
    "pruning": False,
}


def parse(**changes) -> TuneSettings:
    return TuneSettings.parse({**SPACE, **changes})


@pytest.fixture
def base(workplace) -> dict[str, Any]:
    return {
        "name": "toy",
        "data": {"path": str(workplace / "data"), "folds": 2},
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
        "patch": {"size": [8, 8, 8]},
        "train": {
            "batch_size": 2,
            "validation_batches": 1,
            "save_every": 2,
            "workers": 0,
            "validate_every": 2,
            "report_every": 1,
            "optimizer": {"lr": 0.01},
        },
    }


@pytest.mark.slow
def test_a_stopped_search_continues_with_the_trial_it_was_in(base, tmp_path, capsys):
    search = Search.create(tmp_path / "tune", parse(), base)

    def stop(name: str, report: Report) -> None:
        if name == "trial_000" and report.step == 5:
            raise KeyboardInterrupt

    training = search.run(on_report=stop)
    assert next(training).name == "default"
    with pytest.raises(KeyboardInterrupt):
        next(training)
    assert not (tmp_path / "tune/trial_000/trial.json").exists()
    default = (tmp_path / "tune/default/trial.json").read_bytes()
    seen = []
    assert [
        one.name
        for one in Search.load(tmp_path / "tune").run(lambda name, report: seen.append((name, report)))
    ] == [
        "trial_000",
        "trial_001",
    ]
    assert (tmp_path / "tune/default/trial.json").read_bytes() == default
    first = next(report for name, report in seen if name == "trial_000")
    assert first.step > 1  # it was resumed from its last checkpoint
    table = Search.load(tmp_path / "tune").table()
    assert {one.state for one in table.trials} == {"finished"}
    assert all(one.steps > 0 and not math.isnan(one.dice) for one in (table.default, *table.trials))
    assert table.default.values == {"train.optimizer.lr": 0.01, "model.channels": [4, 8]}
    tried = {json.dumps(one.values) for one in table.trials}
    assert len(tried) == 2
    for one in table.trials:
        stored = ExperimentConfig.load(tmp_path / "tune" / one.name / "config.yaml")
        assert stored.train.optimizer.lr == one.values["train.optimizer.lr"]
        assert stored.train.max_time == "2s"
        assert len(stored.model.to_plain()["encoder_stages"]) == len(one.values["model.channels"])
    assert (tmp_path / "tune/trials.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "tune/trials.tsv").read_text().splitlines()) == 4
    assert main(["tune", "--resume", str(tmp_path / "tune")]) == 0
    assert "trial_001" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_fails_and_the_search_goes_on(base, tmp_path):
    space = parse(search={"train.optimizer.lr": [1e-3, 1e-2]}, trials=2)
    search = Search.create(tmp_path / "tune", space, base)
    broken = []

    def fail(name: str, _) -> None:
        if name == "trial_000":
            broken.append(name)
            raise ConfigError("values do not go together")

    assert [one.state for one in search.run(fail)] == ["finished", "failed", "finished"]
    assert search.table().trials[0].message == "values do not go together"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"train.optimizer.lrr": [1, 2]}}, "train.optimizer.lrr: unknown key"),
        ({"search": {"train.optimizer.lr": [0.1, "high"]}}, "train.optimizer.lr"),
        ({"search": {"train.max_time": ["1m", "2m"]}}, "found the length of training"),
    ],
)
def test_values_that_do_not_suit_the_experiment_are_refused_before_training(base, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        Search.create(tmp_path / "tune", parse(**changes), base)
    assert not (tmp_path / "tune").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"low": 1, "high": 1}, "expected a lower low"),
        ({"low": 0, "high": 1, "log": True}, "expected a positive number"),
        ({"low": 0.5, "high": 2, "integer": True}, "fraction"),
    ],
)
def test_ranges_are_checked(space, message):
    with pytest.raises(ConfigError, match=message):
        parse(search={"train.optimizer.lr": space})


def test_the_default_has_its_own_values(base):
    found = default_values(
        base, ["train.optimizer.lr", "model.channels", "model.no_such_key", "train.ema_decay"]
    )
    assert found["train.optimizer.lr"] == 0.01
    assert found["model.channels"] == [4, 8]
    assert "train.ema_decay" in found  # a default that the file does not have
    assert "model.no_such_key" not in found


def test_the_best_trial_must_beat_the_default():
    default = Trial("default", {"lr": 0.1}, "finished", 0.8, 10)
    worse, pruned = (
        Trial("trial_000", {"lr": 0.2}, "finished", 0.7, 9),
        Trial("trial_001", {"lr": 3.0}, "pruned", 0.9, 2),
    )
    table = TrialTable(default, [worse, pruned], ["lr"])
    assert table.best is None
    assert table.verdict() == "no trial was better than the default settings (Dice 0.8000)"
    better = Trial("trial_002", {"lr": 0.05}, "finished", 0.85, 9)
    table = TrialTable(default, [worse, pruned, better], ["lr"])
    assert table.best == better
    assert "better than the default settings by 0.0500 (0.8000 to 0.8500): lr=0.05" in table.verdict()
    assert "cross-validation" in table.verdict()


def test_a_folder_with_files_is_refused(base, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a new one"):
        Search.create(tmp_path, parse(), base)
    with pytest.raises(ConfigError, match=r"found no tune\.yaml"):
        Search.load(tmp_path)


def test_the_time_of_a_trial_is_a_duration():
    assert parse().trial_seconds == seconds_of("2s")
    with pytest.raises(ConfigError, match="trial_time"):
        parse(trial_time="soon")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected an experiment and a file of settings to vary"),
        (["--resume", ".", "--run", "x"], "found also --run"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    assert main(["tune", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("dice", [0.8, 0.2])
def test_the_command_prints_trials_and_the_verdict(base, tmp_path, monkeypatch, capsys, dice):
    default = Trial("default", {"train.optimizer.lr": 0.01}, "finished", 0.5, 9)
    other = Trial("trial_000", {"train.optimizer.lr": 0.05}, "finished", dice, 8)
    failed = Trial("trial_001", {"train.optimizer.lr": 9.0}, "failed", message="the loss is not finite")
    done: list[Trial] = []

    def train(search: Search) -> Iterator[Trial]:
        for trial in (default, other, failed):
            done.append(trial)
            yield trial

    monkeypatch.setattr(Search, "run", train)
    table = partial(TrialTable, default, keys=("train.optimizer.lr",))
    monkeypatch.setattr(Search, "table", lambda _: table(tuple(done[1:])))
    (tmp_path / "toy.yaml").write_text(json.dumps(base))
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    folder = tmp_path / "tune"
    words = ["tune", str(tmp_path / "toy.yaml"), str(tmp_path / "space.yaml"), "--run", str(folder)]
    assert main([*words, "--trials", "2"]) == 0
    out, error = capsys.readouterr()
    assert f"continue with: medseg tune --resume {folder}" in out
    assert "trial_001  failed" in out + error
    assert "the loss is not finite" in out + error
    assert ("trial_000 was better" in out) == (dice > 0.5)
    assert ("experiment with the best settings" in out) == (dice > 0.5) == (folder / "best.yaml").is_file()
