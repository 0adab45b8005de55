"""When reports come, by steps or by time, and what they say of the best validation."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import medseg.train.reports.reporting
import medseg.train.trainer
from medseg.errors import ConfigError
from medseg.train.settings import TrainSettings
from medseg.train.trainer import Trainer


class Clock:
    """A clock for the trainer that advances by so many seconds with every step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now = 0.0
        plain = Trainer._train_step

        def step(trainer: Trainer, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
            self.now += seconds
            return plain(trainer, batches)

        monkeypatch.setattr(Trainer, "_train_step", step)
        for module in (medseg.train.trainer, medseg.train.reports.reporting):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_reports_by_time_follow_the_clock(make_experiment, workplace, monkeypatch):
    Clock(monkeypatch, 20.0)
    options = (
        "train.steps=10",
        "train.report_every=1m",
        "train.validate_every=100",
        "train.validation_batches=0",
    )
    run = workplace / "by time"
    reports = list(make_experiment(*options).trainer(run))
    # Due when a minute has passed after a step, and written with the next; the last step always reports.
    assert [report.step for report in reports] == [4, 8, 10]
    assert reports[0].seconds_per_step == pytest.approx(20.0)
    assert reports[0].seconds_left == pytest.approx(120.0)
    weights = [
        load_file(folder / "model" / "model.safetensors")
        for folder in (run, _by_steps(make_experiment, workplace))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _by_steps(make_experiment, workplace):
    run = workplace / "by steps"
    options = (
        "train.steps=10",
        "train.report_every=1",
        "train.validate_every=100",
        "train.validation_batches=0",
    )
    list(make_experiment(*options).trainer(run))
    return run


def test_a_resumed_training_reports_when_the_interrupted_one_would_have(
    make_experiment, workplace, monkeypatch
):
    Clock(monkeypatch, 20.0)
    options = ("train.steps=9", "train.report_every=1m", "train.save_every=1", "train.validation_batches=0")
    run = workplace / "by time, resumed"
    trainer = make_experiment(*options).trainer(run)
    plain = trainer._save

    def stop(meter) -> None:
        plain(meter)
        if trainer.step == 2:
            raise KeyboardInterrupt

    trainer._save = stop
    with pytest.raises(KeyboardInterrupt):
        list(trainer)
    reports = list(make_experiment(*options).trainer(run, resume=True))
    assert [report.step for report in reports] == [4, 8, 9]
    assert reports[0].seconds_per_step == pytest.approx(20.0)


def test_reports_without_a_validation_do_not_count_as_one(make_experiment, workplace):
    """Their time, a few milliseconds, would else be taken for that of a validation."""
    options = ("train.steps=6", "train.report_every=1", "train.validate_every=3", "train.save_every=6")
    trainer = make_experiment(*options).trainer(workplace / "spans")
    found = []
    for report in trainer:
        found.append((report.step, trainer._overhead[0]))
    assert found[0][1] == found[1][1] == 0
    assert 0 < found[2][1] == found[3][1] == found[4][1] != found[5][1]


def test_each_report_names_the_best_validation(make_experiment, workplace):
    options = ("train.steps=6", "train.report_every=1", "train.validate_every=2", "train.save_every=3")
    run = workplace / "best so far"
    trainer = make_experiment(*options).trainer(run)
    reports = list(itertools.islice(trainer, 4))
    assert (reports[0].best_dice, reports[0].best_step) == (None, None)
    trainer = make_experiment(*options).trainer(run, resume=True)
    reports += [report for report in trainer if report.step > 4]
    seen = [(report.mean_dice, report.step) for report in reports if report.mean_dice is not None]
    for report in reports[1:]:
        best = max((one for one in seen if one[1] <= report.step), key=lambda one: one[0])
        assert (report.best_dice, report.best_step) == best
    assert trainer.best.step == reports[-1].best_step


@pytest.mark.parametrize(
    ("value", "expected"), [("25", 25), (25, 25), ("30s", 30.0), ("1.5m", 90.0), ("2h", 7200.0)]
)
def test_reports_come_by_steps_or_by_time(value, expected):
    settings = TrainSettings.parse({"report_every": value})
    assert (settings.report_seconds or settings.report_every) == expected


@pytest.mark.parametrize("value", [0, -1, "0", "0s", "soon", "1 m", 2.5, True, None, [1]])
def test_other_intervals_are_refused(value):
    with pytest.raises(
        ConfigError, match=r"report_every.*expected a number of steps such as 25, or a time such as 30s"
    ):
        TrainSettings.parse({"report_every": value})
