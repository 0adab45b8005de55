from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.children import start_program

WORKERS = """
import os, sys, time
from pathlib import Path

import waiting

if __name__ == "__main__":
    if {pool!r} == "map":
        from medseg.runtime.process_map import map_in_processes

        map_in_processes(waiting.wait, ["a", "b", "c"], ["a", "b", "c"], workers=2)
    elif {pool!r} == "thread":
        import subprocess

        workers = [subprocess.Popen([sys.executable, waiting.__file__, name, str(os.getpid())]) for name in "ab"]
        time.sleep(300)
    else:
        from medseg.inference.cohort.several_devices import predict_on_devices

        list(predict_on_devices(waiting.work, ["a", "b"], [(None, None), (None, None)]))
"""

WAITING = """
import os, sys, time
from pathlib import Path

from medseg.runtime import worker_process

FOLDER = Path(__file__).parent


def wait(name):
    (FOLDER / f".{name}").write_text(str(os.getpid()))
    (FOLDER / f".{name}").rename(FOLDER / name)
    time.sleep(300)


def work(device, pairs):
    wait(device)
    yield from ()


if __name__ == "__main__":  # as on a system other than Linux
    worker_process.sys = type("sys", (), {"platform": "darwin"})
    worker_process.start_worker(False, int(sys.argv[2]))
    wait(sys.argv[1])
"""

WARNING = """
import warnings

from medseg.errors import format_warning, warn_once
from medseg.runtime.process_map import map_in_processes

if __name__ == "__main__":
    if {one_line}:
        warnings.formatwarning = format_warning
    map_in_processes(warn_once, ["ct.nii: found a.", "mr.nii: found b."], ["a", "b"], workers=2)
"""


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed by a signal")
@pytest.mark.parametrize("pool", ["map", "thread", "devices"])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, pool: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKERS.format(pool=pool))
    (tmp_path / "waiting.py").write_text(WAITING)
    parent = start_program(script)
    try:
        assert until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists(), 120)
        workers = [int((tmp_path / name).read_text()) for name in "ab"]
        assert all(runs(worker) for worker in workers)
    finally:
        parent.close()
    try:
        assert until(lambda: not any(runs(worker) for worker in workers), 60)
    finally:
        for worker in filter(runs, workers):
            os.kill(worker, signal.SIGKILL)


SLOW_IMPORT = """
import os, sys

if __name__ == "__main__":
    from medseg.inference.cohort.several_devices import predict_on_devices

    os.environ["PARENT_OF_THE_WORKER"] = str(os.getpid())
    sys.path.insert(0, {folder!r})
    from slow_to_import import work  # its import in the worker takes five minutes

    list(predict_on_devices(work, ["a"], [(None, None)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another system ends the process after the import")
def test_a_worker_ends_with_its_parent_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "if os.environ['PARENT_OF_THE_WORKER'] != str(os.getpid()):\n"
        f"    Path({str(tmp_path / 'part')!r}).write_text(str(os.getpid()))\n"
        f"    Path({str(tmp_path / 'part')!r}).rename({str(tmp_path / 'importing')!r})\n"
        "    time.sleep(300)\n"
        "def work(device, pairs):\n"
        "    yield from ()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(SLOW_IMPORT.format(folder=str(tmp_path)))
    parent = start_program(script)
    try:
        assert until((tmp_path / "importing").exists, 120)
    finally:
        parent.close()
    worker = int((tmp_path / "importing").read_text())
    try:
        assert until(lambda: not runs(worker), 60)
    finally:
        if runs(worker):
            os.kill(worker, signal.SIGKILL)


RANK = """
import os, sys, time
from pathlib import Path

from medseg.runtime import worker_process

if {platform!r} != "linux":
    worker_process.sys = type("sys", (), {{"platform": {platform!r}}})
worker_process.end_with_torchrun()
Path({file!r} + ".part").write_text(str(os.getpid()))
Path({file!r} + ".part").rename({file!r})
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed by a signal")
@pytest.mark.parametrize(
    ("by_torchrun", "platform"), [(True, "linux"), (True, "darwin"), (False, "linux"), (False, "darwin")]
)
def test_ranks_end_with_torchrun_and_not_with_another_launcher(
    tmp_path: Path, by_torchrun: bool, platform: str
) -> None:
    file = tmp_path / "pid"
    rank = RANK.format(platform=platform, file=str(file))
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    variables = {"TORCHELASTIC_RUN_ID": "one"} if by_torchrun else {}
    parent = subprocess.Popen([sys.executable, "-c", launcher], env={**os.environ, **variables})
    try:
        assert until(file.exists, 120)
    finally:
        parent.kill()
        parent.wait()
    pid = int(file.read_text())
    try:
        if by_torchrun:
            assert until(lambda: not runs(pid), 60)
        else:
            assert not until(lambda: not runs(pid), 2)
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("one_line", [True, False])
def test_workers_print_warnings_as_their_parent_does(
    tmp_path: Path, one_line: bool, measured_children: None
) -> None:
    script = tmp_path / "script.py"
    script.write_text(WARNING.format(one_line=one_line))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    lines = sorted(line for line in done.stderr.splitlines() if "found" in line)
    if one_line:
        assert lines == ["warning: ct.nii: found a.", "warning: mr.nii: found b."]
    else:
        assert len(lines) == 2
        assert all("DataWarning: " in line for line in lines)
