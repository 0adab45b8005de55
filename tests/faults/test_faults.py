"""Some killed processes and full disks, and proof that the campaign finds what it looks for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg.storage.manifest import write_manifest
from medseg.storage.temporary_names import temporary_file
from tests.faults.jobs import JOBS
from tests.faults.whole import differences, left_behind, results, torn

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and adopted as on Linux"),
    pytest.mark.slow,
]
QUICK = "train ranks,predict"  # killed workers of a training are tested in tests/scenarios/test_resume.py


def test_kills_and_a_full_disk_leave_nothing_torn() -> None:
    """The main process and a worker, a rank, and all processes, at random moments."""
    options = ["--kills", "2", "--disks", "1", "--jobs", QUICK, "--patience", "120"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [line for line in done.stdout.splitlines() if re.match(r"(kill|disk) \d+", line)]
    assert sum(line.startswith("kill") for line in trials) == 2
    assert all(line.endswith("passed") for line in trials)
    assert len([line for line in trials if line.startswith("disk")]) == 1 or "may not mount" in done.stdout


def test_jobs_have_their_own_names() -> None:
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert {job.words[0] for job in JOBS} == {"plan", "train", "predict", "evaluate", "check"}


def write_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "cases.tsv").write_text("case\tdice\na\t0.5\n")
    (folder / "summary.json").write_text('{"dice": 0.5}\n')
    np.save(folder / "image.npy", np.arange(60.0))
    (folder / "step-0000001").mkdir()
    save_file({"a": torch.ones(3)}, folder / "step-0000001" / "weights.safetensors")
    torch.save({"step": 1, "seconds": time.time()}, folder / "step-0000001" / "state.pt")
    write_manifest(folder / "step-0000001")
    row = {"step": 1, "loss": 0.5, "seconds": time.time()}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_whole_files_pass_and_their_results_do_not_depend_on_times(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name)
        assert torn(tmp_path / name) == []
        assert left_behind(tmp_path / name) == []
    assert differences(results(tmp_path / "a"), results(tmp_path / "b")) == []


@pytest.mark.parametrize(
    "name",
    ["cases.tsv", "summary.json", "image.npy", "step-0000001/weights.safetensors", "step-0000001/state.pt"],
)
def test_a_torn_file_is_found(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "a")
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:-4])
    assert any(name.split("/")[0] in fault for fault in torn(tmp_path / "a"))


def test_a_checkpoint_without_a_manifest_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "a" / "step-0000001" / "manifest.json").unlink()
    assert torn(tmp_path / "a") == ["torn: step-0000001: no manifest"]


def test_what_was_left_behind_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    left = temporary_file(tmp_path / "a" / "step-0000001" / "state.pt")
    left.write_text("half")
    (tmp_path / "a" / "lock").write_text("{}")
    assert left_behind(tmp_path / "a") == ["left behind: lock", f"left behind: step-0000001/{left.name}"]
    assert torn(tmp_path / "a") == []


@pytest.mark.parametrize("change", ["missing", "unexpected", "other loss", "other state"])
def test_other_results_are_found(tmp_path: Path, change: str) -> None:
    for name in "ab":
        write_run(tmp_path / name)
    changed = tmp_path / "b"
    if change == "missing":
        (changed / "cases.tsv").unlink()
    elif change == "unexpected":
        (changed / "more.json").write_text("{}")
    elif change == "other loss":
        (changed / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25, "seconds": 1}\n')
    else:
        torch.save({"step": 2, "seconds": time.time()}, changed / "step-0000001" / "state.pt")
    assert len(differences(results(tmp_path / "a"), results(changed))) == 1


PRINTS_AND_WAITS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, flush=True)
time.sleep(300)
"""


def test_a_process_that_outlives_its_command_is_found(tmp_path: Path) -> None:
    """In a process of its own, which adopts the orphan."""
    program = f"""
import os, subprocess, sys, time
from pathlib import Path
from tests.faults.processes import Running, adopt_orphans, kill
adopt_orphans()
parent = subprocess.Popen([sys.executable, "-c", {PRINTS_AND_WAITS!r}], stdout=subprocess.PIPE)
parent.stdout.readline()
running = Running(parent.pid, Path("log"), os.open(os.devnull, os.O_RDONLY))
assert len(running.descendants()) == 2
kill(parent.pid)
assert running.wait(60) and running.code == -9
(found,) = running.alive_after(0.5)
assert "is alive after 0.5 s" in found and "time.sleep(300)" in found, found
assert running.alive_after(60) == []
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
