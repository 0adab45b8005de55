"""What a folder of runs no longer needs is found, and only that is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.cli.main import main
from medseg.data.patches.case_store import StoredCase
from medseg.errors import DataError
from medseg.experiment.prepared_cases import STORE, find_unused, store_in_use, write_prepared
from medseg.storage.temporary_names import temporary_file, temporary_folder


def case_in(runs: Path, name: str, size: int = 1000) -> StoredCase:
    folder = runs / STORE / name
    folder.mkdir(parents=True)
    (folder / "image.npy").write_bytes(bytes(size))
    return StoredCase(name.rpartition("-")[0], folder)


def run_in(runs: Path, name: str, cases: list[StoredCase] | None, kind: str = "training") -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format": 1, "kind": kind, "extended_at": []}))
    if cases is not None:
        write_prepared(run, cases)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs and a fold use some of four prepared cases; nobody uses ``b-2``."""
    runs = tmp_path / "runs"
    cases = [case_in(runs, name) for name in ("a-1", "a-2", "b-1", "b-2")]
    run_in(runs, "first", cases[:1])
    run_in(runs, "folds", None, "cross_validation")
    run_in(runs, "folds/fold_0", cases[:2])
    run_in(runs, "second", cases[2:3])
    return runs


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by_a_killed_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    dead = dead_process()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: dead)
        return temporary_folder(path) if path.suffix == "" else temporary_file(path)


def test_only_cases_that_no_run_names_are_unused(runs):
    (item,) = find_unused(runs).items
    assert (item.path, item.size) == (runs / STORE / "b-2", 1000)
    shutil.rmtree(runs / "second")
    assert [item.path.name for item in find_unused(runs).items] == ["b-1", "b-2"]


def test_nothing_is_removed_without_yes(runs, capsys):
    assert main(["clean", str(runs)]) == 0
    out = capsys.readouterr().out
    assert f"{runs / STORE / 'b-2'}  (no run uses this prepared case)" in out
    assert f"nothing was removed. Remove it with: medseg clean {runs} --yes" in out
    assert (runs / STORE / "b-2").is_dir()
    assert main(["clean", str(runs), "--yes"]) == 0
    assert "removed: 0.001 MB in 1 place" in capsys.readouterr().out
    assert sorted(path.name for path in (runs / STORE).iterdir()) == ["a-1", "a-2", "b-1"]
    assert main(["clean", str(runs), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_temporary_files_of_killed_processes_are_removed(runs, monkeypatch):
    (runs / "first" / "model").mkdir()
    lost = [
        left_by_a_killed_process(runs / STORE / "b-3", monkeypatch),
        left_by_a_killed_process(runs / "first" / "model" / "model.safetensors", monkeypatch),
    ]
    lost[0].mkdir()
    (lost[0] / "image.npy").write_bytes(bytes(50))
    lost[1].write_bytes(bytes(7))
    own = temporary_file(runs / "first" / "metrics.jsonl")
    own.touch()
    found = find_unused(runs)
    assert {item.path: item.size for item in found.items if "killed" in item.why} == {lost[0]: 50, lost[1]: 7}
    found.remove()
    assert not any(path.exists() for path in lost)
    assert own.exists()


def test_cases_of_a_training_that_is_being_prepared_are_kept(runs):
    with store_in_use(runs / STORE):
        found = find_unused(runs)
        assert found.items == ()
        assert "a training is being prepared" in found.kept[0]
    assert len(find_unused(runs).items) == 1


def test_a_case_that_is_used_by_now_is_kept(runs):
    found = find_unused(runs)
    run_in(runs, "third", [StoredCase("b", runs / STORE / "b-2")])
    found.remove()
    assert (runs / STORE / "b-2").is_dir()


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"format": 2, "folders": []}', '{"format": 1}', '{"format": 1, "folders": [["b-2"]]}'],
)
def test_all_cases_are_kept_if_those_of_a_run_are_not_known(runs, content):
    file = runs / "second" / "prepared.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    found = find_unused(runs)
    assert found.items == ()
    assert str(file) in found.kept[0]


def test_a_folder_without_runs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="found neither runs nor prepared cases"):
            find_unused(folder)


@pytest.mark.slow
def test_a_training_keeps_what_it_needs_to_resume(make_experiment, workplace, tmp_path):
    shutil.copytree(workplace / "data", tmp_path / "data")
    options = (f"data.path={tmp_path / 'data'}", "train.steps=1", "train.report_every=1")
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    list(make_experiment(*options).trainer(one))
    assert find_unused(one.parent).items == ()
    list(make_experiment(*options, "preprocess.spacing=[9,9,9]").trainer(two))
    assert find_unused(one.parent).items == ()
    shutil.rmtree(one)
    found = find_unused(two.parent)
    assert len(found.items) == len(list((tmp_path / "data" / "labelsTr").iterdir()))
    found.remove()
    experiment = make_experiment(*options, "preprocess.spacing=[9,9,9]")
    before = {path: path.stat().st_mtime_ns for path in (two.parent / STORE).glob("*-*")}
    experiment.trainer(two, resume=True)
    assert {path: path.stat().st_mtime_ns for path in (two.parent / STORE).glob("*-*")} == before
