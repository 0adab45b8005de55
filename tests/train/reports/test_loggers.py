"""Loggers of other packages, by entry points that a test invents; MLflow where it is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

import medseg.train.reports.loggers as loggers
from medseg.errors import ConfigError, DataWarning
from medseg.runtime.stop_signals import Interrupted
from medseg.train.reports.loggers import LoggerGroup, check_loggers, create_loggers, without_folders
from medseg.train.reports.reporting import Report, read_metrics


class Recorder:
    """Remembers what it was called with; fails in the method called `fails_in`."""

    fails_in = ""
    started: ClassVar[list[Recorder]] = []

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def _note(self, name: str, *what: Any) -> None:
        self.calls.append((name, *what))
        if name == self.fails_in:
            raise RuntimeError("no connection")

    def start(self, run: Path, settings: Any) -> None:
        self.started.append(self)
        self._note("start", run, settings)

    def log(self, report: Report) -> None:
        self._note("log", report.step)

    def finish(self, state: str) -> None:
        self._note("finish", state)


@dataclass(frozen=True)
class Point:
    name: str
    value: Any

    def load(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def installed(monkeypatch):
    """A function that installs loggers by name."""
    Recorder.started = []

    def install(**found: Any) -> None:
        points = [Point(name, value) for name, value in found.items()]
        monkeypatch.setattr(
            loggers, "entry_points", lambda group: points if group == "medseg.loggers" else []
        )

    return install


def test_a_training_starts_logs_and_finishes(installed, make_experiment, workplace):
    installed(recorder=Recorder)
    run = workplace / "logged"
    options = ("train.loggers=[recorder]", "train.steps=4", "train.report_every=2")
    list(make_experiment(*options).trainer(run))
    (only,) = Recorder.started
    (_, folder, settings), *middle, last = only.calls
    assert folder == run
    assert settings["train"]["loggers"] == ["recorder"]
    assert settings["data"]["path"] == "data"  # without the folders of this machine
    assert middle == [("log", row["step"]) for row in read_metrics(run / "metrics.jsonl")]
    assert last == ("finish", "finished")
    list(make_experiment(*options).trainer(run, resume=True))
    assert len(Recorder.started) == 1  # a finished run has nothing to log


def test_an_abandoned_and_a_failed_training_say_so(installed, make_experiment, workplace, monkeypatch):
    installed(recorder=Recorder)
    experiment = make_experiment("train.loggers=[recorder]", "train.steps=3")
    loop = iter(experiment.trainer(workplace / "abandoned by its loop"))
    next(loop)
    loop.close()
    trainer = experiment.trainer(workplace / "failed")
    monkeypatch.setattr(trainer, "_train_step", lambda batches: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(trainer)
    assert [one.calls[-1] for one in Recorder.started] == [("finish", "stopped"), ("finish", "failed")]


def test_an_interrupted_session_is_stopped():
    recorder = Recorder()
    with pytest.raises(Interrupted), LoggerGroup({"a": recorder}).session(Path("run"), {}):
        raise Interrupted("stopped at step 3", 15)
    assert recorder.calls[-1] == ("finish", "stopped")


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_failing_logger_never_stops_a_training_and_is_warned_of_once(
    method, installed, make_experiment, workplace, monkeypatch
):
    class Failing(Recorder):
        fails_in = method

    installed(failing=Failing, recorder=Recorder)
    options = ("train.loggers=[failing,recorder]", "train.steps=2", "train.validation_batches=0")
    trainer = make_experiment(*options).trainer(workplace / f"fails in {method}")
    with pytest.warns(DataWarning) as warned:
        assert [report.step for report in trainer] == [1, 2]
    assert [str(one.message).split(" and is left")[0] for one in warned] == [
        "train.loggers: 'failing' failed (RuntimeError: no connection)"
    ]
    failed, works = Recorder.started
    assert [name for name, *_ in works.calls] == ["start", "log", "log", "finish"]
    assert [name for name, *_ in failed.calls][-1] == method


def test_unknown_and_broken_loggers_are_refused_before_the_data_are_prepared(
    installed, make_experiment, workplace
):
    installed(recorder=Recorder, broken=ImportError("no module named wandb"))
    run = workplace / "refused"
    with pytest.raises(
        ConfigError, match=r"train\.loggers: found 'recoder'.*mlflow, recorder.*Did you mean 'recorder'"
    ):
        make_experiment("train.loggers=[recoder]").trainer(run)
    assert not run.exists()
    with pytest.raises(
        ConfigError, match=r"'broken' cannot be created \(ImportError: no module named wandb\)"
    ):
        create_loggers(["broken"])
    check_loggers(["mlflow", "recorder"])


def test_a_name_that_is_given_twice_logs_once(installed):
    installed(recorder=Recorder)
    assert list(create_loggers(["recorder", "recorder"])) == ["recorder"]


def test_absolute_paths_lose_their_folders():
    plain = {"data": {"path": "/home/ada/liver", "roots": ["/data/a", "b/c"]}, "steps": 3, "none": None}
    assert without_folders(plain) == {
        "data": {"path": "liver", "roots": ["a", "b/c"]},
        "steps": 3,
        "none": None,
    }


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_without_mlflow_the_extra_is_named():
    with pytest.raises(ConfigError, match=r"pip install medseg\[mlflow\]"):
        create_loggers(["mlflow"])


@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports
def test_mlflow_writes_a_folder_that_mlflow_reads(tmp_path):
    from mlflow.tracking import MlflowClient

    report = Report(
        step=5,
        steps=10,
        loss=0.5,
        lr=0.1,
        seconds_per_step=1.0,
        samples_per_second=2.0,
        data_wait_fraction=0.0,
        val_dice={"liver (left)": 0.75, "absent": float("nan")},
        seconds=5.0,
    )
    run = tmp_path / "runs" / "first"
    settings = {"train": {"steps": 10, "loggers": ["mlflow"]}, "data": {"path": "/home/ada/liver"}}
    for state in ("stopped", "finished"):  # the second is resumed
        run.mkdir(parents=True, exist_ok=True)
        group = LoggerGroup(create_loggers(["mlflow"]))
        try:
            with group.session(run, settings):
                group.log(report)
                if state == "stopped":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert {path.name for path in tmp_path.rglob("*") if path.parent == tmp_path / "runs"} == {
        "first",
        "mlruns",
    }
    client = MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("runs").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params["train.steps"] == "10"
    assert found.data.params["data.path"] == "liver"
    assert found.data.metrics["train/loss"] == 0.5
    assert found.data.metrics["validation/dice_liver _left_"] == 0.75
    assert "validation/dice_absent" not in found.data.metrics
