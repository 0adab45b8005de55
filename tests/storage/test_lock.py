"""One writer per run folder."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from medseg.errors import ConfigError, ResourceError
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder
from medseg.storage.lock import RunLock, _link
from tests.helpers.runs import files_of_at_most


def hold(folder, host, pid, name="lock"):
    (folder / name).write_text(json.dumps({"host": host, "pid": pid}))


def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_lock_is_acquired_and_released(tmp_path):
    with RunLock(tmp_path):
        found = json.loads((tmp_path / "lock").read_text())
        assert (found["host"], found["pid"]) == (platform.node(), os.getpid())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_lock_of_another_process_is_not_replaced(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", fail_without_links)
    hold(tmp_path, "elsewhere", 1)
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(ConfigError, match="found a running training"), RunLock(tmp_path):
        pass
    assert (tmp_path / "lock").read_bytes() == before
    (tmp_path / "lock").unlink()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_lock_has_its_content_from_the_first_moment(tmp_path, monkeypatch):
    """A process that is killed at any moment leaves a complete lock, or none."""
    link, seen = os.link, []

    def killed_after(source, target):
        link(source, target)
        seen.append(json.loads((tmp_path / "lock").read_text())["pid"])
        raise SystemExit

    monkeypatch.setattr(os, "link", killed_after)
    with pytest.raises(SystemExit):
        RunLock(tmp_path).__enter__()
    assert seen == [os.getpid()]


def fail_without_links(*_: object) -> None:
    raise OSError(95, os.strerror(95))


def test_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", [None, "elsewhere"])
def test_lock_of_a_running_process_raises(tmp_path, host):
    hold(tmp_path, host or platform.node(), os.getppid())
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(ConfigError) as caught, RunLock(tmp_path):
        pass
    told = str(caught.value)
    for part in (str(tmp_path / "lock"), f"process {os.getppid()} on", "expected none", "delete this file"):
        assert part in told
    assert (tmp_path / "lock").read_bytes() == before


def test_lock_of_a_dead_process_is_taken_over_only_on_the_same_host(tmp_path):
    pid = dead_pid()
    hold(tmp_path, platform.node(), pid)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    hold(tmp_path, "elsewhere", pid)
    with pytest.raises(ConfigError, match="on elsewhere"), RunLock(tmp_path):
        pass


def test_only_one_of_two_processes_takes_over(tmp_path, monkeypatch):
    check, others = RunLock.check, [tmp_path / "of another"]

    def check_and_be_late(lock):
        check(lock)
        if others:
            hold(tmp_path, platform.node(), os.getppid(), others[0].name)
            others.pop().replace(tmp_path / "lock")

    hold(tmp_path, platform.node(), dead_pid())
    monkeypatch.setattr(RunLock, "check", check_and_be_late)
    with pytest.raises(ConfigError, match=f"process {os.getppid()} on"), RunLock(tmp_path):
        pass
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getppid()


def test_full_disk_leaves_no_lock(tmp_path):
    with (
        pytest.raises(ResourceError, match="lock: cannot be written"),
        files_of_at_most(0),
        RunLock(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "[" * 100_000, '{"host": 1}'),
        *('{"host": "a", "pid": "b"}', '{"host": "a", "pid": Infinity}'),
    ],
)
def test_unreadable_lock_raises(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(ConfigError, match="an unknown host"), RunLock(tmp_path):
        pass


def test_abandoned_loop_is_taken_over_and_does_not_release_the_new_lock(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert (tmp_path / "lock").is_file()
    assert not (tmp_path / "lock").exists()


def test_training_a_locked_run_raises(make_experiment, workplace):
    run = workplace / "locked"
    trainer = make_experiment("train.steps=1").trainer(run)
    hold(run, platform.node(), os.getppid())
    with pytest.raises(ConfigError, match="found a running training"):
        next(iter(trainer))
    assert not (run / "metrics.jsonl").exists()
    assert not list(run.glob("events*"))
    (run / "lock").unlink()
    assert [report.step for report in trainer] == [1]
    assert not (run / "lock").exists()


def test_resuming_a_locked_run_raises_and_prepares_nothing(make_experiment, workplace):
    experiment = make_experiment("train.steps=1")
    run = workplace / "locked resume"
    list(experiment.trainer(run))
    hold(run, platform.node(), os.getppid())
    seen: list[object] = []
    with pytest.raises(ConfigError, match="found a running training"):
        experiment.trainer(run, resume=True, progress=lambda *case: seen.append(case))
    assert seen == []


def test_run_started_meanwhile_in_the_same_folder_is_not_changed(make_experiment, workplace):
    """The other one is the first to have its cases prepared."""
    run, taken = workplace / "both", ("preprocess.crop_to_nonzero=false", "seed=1")

    def begin_other(*_: object) -> None:
        if not run.exists():
            list(make_experiment("train.steps=1").trainer(run))

    with pytest.raises(ConfigError, match="found other files"):
        make_experiment("train.steps=2", *taken).trainer(run, progress=begin_other)
    assert Experiment.from_run(run) == make_experiment("train.steps=1")


def test_folder_is_opened_by_one_process_at_a_time(make_experiment, workplace):
    run = workplace / "opened by another"

    def begin_other(*_: object) -> None:
        run.mkdir(exist_ok=True)
        hold(run, platform.node(), os.getppid())

    with pytest.raises(ConfigError, match="found a running training"):
        make_experiment("train.steps=1").trainer(run, progress=begin_other)
    assert [path.name for path in run.iterdir()] == ["lock"]
    (run / "lock").unlink()
    hold(run, platform.node(), dead_pid())  # killed as it opened the folder
    assert [report.step for report in make_experiment("train.steps=1").trainer(run)] == [1]


def test_checkpoint_is_loaded_only_when_resuming(make_experiment, workplace):
    run = workplace / "taken up"
    experiment = make_experiment("train.steps=2", "train.validation_batches=0")
    list(experiment.trainer(run))
    away = (run / "last").rename(workplace / "last of another")
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    plain = RunFolder.open

    def with_checkpoint(*given: object) -> None:
        plain(*given)
        away.rename(run / "last")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "open", with_checkpoint)
        assert experiment.trainer(run).step == 0
    assert experiment.trainer(run, resume=True).step == 2


def test_a_lock_that_cannot_be_written_without_links_is_removed(tmp_path, monkeypatch):
    temporary, path = tmp_path / "temporary", tmp_path / "lock"
    temporary.write_text("{}")

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    def full(self: Path) -> bytes:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "link", refuse)
    assert _link(temporary, path)
    assert path.read_text() == "{}"
    assert not _link(temporary, path)
    path.unlink()
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(OSError, match="no space"):
        _link(temporary, path)
    assert not path.exists()
