from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError, DataWarning, DiskFullError, MedsegError, ResourceError, warn_once
from medseg.runtime import process_map
from medseg.runtime.process_map import map_in_processes, worthwhile_processes
from tests.helpers.children import start_program

pytestmark = pytest.mark.usefixtures("measured_children")


def squared(number: int) -> int:
    return number * number


def failing(number: int) -> int:
    if number == 1:
        raise DataError(f"item {number}: found a fault.")
    return number


def full(number: int) -> int:
    raise DiskFullError("no space")


def broken(number: int) -> int:
    return 1 // number


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def killed_once(file: str) -> str:
    if file and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return file


def out_of_memory(number: int) -> int:
    if number == 1:
        np.zeros(1 << 60, np.uint8)
    return number


def warned(number: int) -> int:
    print("this does not mix with the answers")
    warn_once("ct.nii: found 3 bytes after the voxels.")
    return number


def process(_: int) -> tuple[int, int]:
    time.sleep(0.2)
    return os.getpid(), int(os.environ["OMP_NUM_THREADS"])


def meets_another(folder: Path, seconds: float) -> bool:
    """Return whether another item is in work at the same time."""
    own = folder / str(os.getpid())
    own.touch()
    try:
        end = time.monotonic() + seconds
        while len(list(folder.iterdir())) < 2:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        (folder / f"{os.getpid()} met").touch()
        return True
    finally:
        own.unlink()


both = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])


@both
def test_results_are_in_the_order_of_the_items(workers: int) -> None:
    seen: list[tuple[int, int, str]] = []
    found = map_in_processes(
        squared, [3, 1, 2], ["c", "a", "b"], workers, lambda *progress: seen.append(progress)
    )
    assert found == [9, 1, 4]
    assert [done for done, _, _ in seen] == [1, 2, 3]
    assert sorted(name for _, _, name in seen) == ["a", "b", "c"]


@both
def test_a_failed_item_does_not_stop_the_others(workers: int) -> None:
    first, second, third = map_in_processes(failing, [0, 1, 2], ["a", "b", "c"], workers)
    assert (first, third) == (0, 2)
    assert isinstance(second, DataError)
    assert str(second) == "item 1: found a fault."


@both
def test_a_full_disk_stops_everything(workers: int) -> None:
    with pytest.raises(DiskFullError, match="no space"):
        map_in_processes(full, [0, 1, 2], ["a", "b", "c"], workers)


@both
def test_an_error_that_only_a_developer_understands_is_raised(workers: int) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        map_in_processes(broken, [1, 0, 2], ["a", "b", "c"], workers)
    if workers:
        assert "in broken" in "".join(caught.value.__notes__)


@both
def test_an_item_without_enough_memory_fails_alone(workers: int) -> None:
    first, second, third = map_in_processes(out_of_memory, [0, 1, 2], ["a", "b", "c"], workers)
    assert (first, third) == (0, 2)
    assert isinstance(second, ResourceError)
    assert "b: found too little memory (Unable to allocate" in str(second)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed by a signal")
def test_the_item_of_a_killed_process_is_tried_again_and_then_fails(tmp_path: Path) -> None:
    found = map_in_processes(killed, [0, 1, 2, 3], ["a", "b", "c", "d"], 2)
    assert found[:2] + found[3:] == [0, 1, 3]
    assert isinstance(found[2], ResourceError)
    assert "c: its process ended with signal 9" in str(found[2])
    once = ["", str(tmp_path / "file"), ""]
    assert map_in_processes(killed_once, once, ["a", "b", "c"], 2) == once


@pytest.mark.slow
def test_warnings_of_processes_are_repeated_once() -> None:
    with pytest.warns(DataWarning, match="found 3 bytes") as caught:
        assert map_in_processes(warned, [1, 2, 3], ["a", "b", "c"], 2) == [1, 2, 3]
    assert len(caught) == 1


@pytest.mark.slow
def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_map, "usable_cores", lambda: 4)
    found = map_in_processes(process, range(4), list("abcd"), 2)
    assert not any(isinstance(one, MedsegError) for one in found)
    assert len({one[0] for one in found if not isinstance(one, MedsegError)}) == 2
    assert {one[1] for one in found if not isinstance(one, MedsegError)} == {2}


@pytest.mark.slow
@pytest.mark.parametrize(("free", "together"), [(4e9, True), (2e9, False)])
def test_items_that_do_not_fit_into_memory_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, together: bool
) -> None:
    """Each item needs 1.2 GB, and a process 0.3 GB; nine tenths of the free memory may be used."""
    estimated: list[Path] = []

    def memory(folder: Path) -> int:
        estimated.append(folder)
        return 1_200_000_000

    monkeypatch.setattr(process_map, "free_memory", lambda: int(free))
    work = partial(meets_another, seconds=60 if together else 0.3)
    assert map_in_processes(work, [tmp_path] * 3, list("abc"), 3, memory=memory) == [together] * 3
    assert len(estimated) == 3


@pytest.mark.slow
def test_an_interrupt_ends_the_processes() -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    before = {child.pid for child in process_map.psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        map_in_processes(process, range(40), [str(n) for n in range(40)], 2, stop)
    assert {child.pid for child in process_map.psutil.Process().children()} <= before


SCRIPT = """
import os
from pathlib import Path

with open("starts", "a") as file:
    file.write("started ")

import medseg

found = medseg.plan("data", workers=2)
print(len(found.fingerprint.cases), "cases")
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_by_the_processes(tmp_path: Path) -> None:
    from medseg.data.datasets.phantom import write_phantoms

    write_phantoms(tmp_path / "data", cases=3, shape=(16, 16, 12), spacing=(5, 5, 8))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = start_program(tmp_path / "script.py", cwd=tmp_path)
    printed, errors = done.communicate(300)
    assert (done.returncode, printed) == (0, "3 cases\n"), errors
    assert (tmp_path / "starts").read_text() == "started "


def test_few_bytes_are_not_worth_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_map, "usable_cores", lambda: 12)
    file = tmp_path / "image.nii"
    file.write_bytes(b"1")
    assert worthwhile_processes([file, tmp_path / "missing.nii"]) == 0
    os.truncate(file, 101_000_000)
    assert worthwhile_processes([file]) == 12
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worthwhile_processes([file]) == 3
