"""One writer per run folder."""

from __future__ import annotations

import json
import os
import platform
import subprocess

import pytest

from medseg.errors import ConfigError
from medseg.train.lock import RunLock


def hold(folder, host, pid):
    (folder / "lock").write_text(json.dumps({"host": host, "pid": pid}))


def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_taken_and_given_back(tmp_path):
    with RunLock(tmp_path):
        found = json.loads((tmp_path / "lock").read_text())
        assert (found["host"], found["pid"]) == (platform.node(), os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", [None, "elsewhere"])
def test_refused_while_another_process_holds_it(tmp_path, host):
    hold(tmp_path, host or platform.node(), os.getppid())
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(ConfigError) as caught, RunLock(tmp_path):
        pass
    told = str(caught.value)
    for part in (str(tmp_path / "lock"), f"process {os.getppid()} on", "expected none", "delete this file"):
        assert part in told
    assert (tmp_path / "lock").read_bytes() == before


def test_a_dead_process_on_this_host_is_taken_over_but_not_on_another(tmp_path):
    pid = dead_pid()
    hold(tmp_path, platform.node(), pid)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    hold(tmp_path, "elsewhere", pid)
    with pytest.raises(ConfigError, match="on elsewhere"), RunLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"host": "a", "pid": "b"}'])
def test_an_unreadable_lock_is_respected(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(ConfigError, match="an unknown host"), RunLock(tmp_path):
        pass


def test_a_loop_left_behind_in_this_process_is_taken_over_and_does_not_free_the_new_lock(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert (tmp_path / "lock").is_file()
    assert not (tmp_path / "lock").exists()


def test_a_locked_run_is_not_trained(make_experiment, workplace):
    run = workplace / "locked"
    trainer = make_experiment("train.steps=1").trainer(run)
    hold(run, platform.node(), os.getppid())
    with pytest.raises(ConfigError, match="found a training at work"):
        next(iter(trainer))
    assert not (run / "metrics.jsonl").exists()
    assert not list(run.glob("events*"))
    (run / "lock").unlink()
    assert [report.step for report in trainer] == [1]
    assert not (run / "lock").exists()


def test_a_locked_run_is_not_resumed_nor_its_cases_prepared(make_experiment, workplace):
    experiment = make_experiment("train.steps=1")
    run = workplace / "locked resume"
    list(experiment.trainer(run))
    hold(run, platform.node(), os.getppid())
    seen: list[object] = []
    with pytest.raises(ConfigError, match="found a training at work"):
        experiment.trainer(run, resume=True, on_case=lambda *case: seen.append(case))
    assert seen == []
