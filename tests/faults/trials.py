"""One disturbed run: what is done to it, and what must hold afterwards."""

from __future__ import annotations

import ctypes
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.jobs import Job, Victim
from tests.faults.processes import FileEvent, Running, import_what_was_imported, kill, start
from tests.faults.whole import differences, left_behind, results, torn

_SECONDS_OF_A_RUN = 300.0
_ENDED_BY_LACK = 4
_ATTEMPTS = 6
_PAGE = 4096


@dataclass(frozen=True)
class Baseline:
    """An undisturbed run.

    Attributes:
        seconds: Its duration.
        changes: Number of changes to files by its main process.
        size: Bytes of its files.
        results: Hash of each file.
    """

    seconds: float
    changes: int
    size: int
    results: dict[str, str]


@dataclass
class Trial:
    """What was done, and what is wrong with what followed.

    Attributes:
        job: Name of the command.
        what: What was done to it, and when.
        code: Exit code of the disturbed run.
        seconds: Seconds from the disturbance to the end of the last process.
        faults: What is wrong; empty for a passed trial.
    """

    job: str
    what: str
    code: int | None = None
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """The folders of the campaign.

    Attributes:
        root: Folder that holds everything.
        patience: Seconds in which all processes must end after a disturbance.
    """

    root: Path
    patience: float = 10.0

    @property
    def inputs(self) -> Path:
        """What the commands read."""
        return self.root / "inputs"

    @property
    def work(self) -> Path:
        """Where they run and write; empty before each trial."""
        return self.root / "work"

    @property
    def log(self) -> Path:
        """What they print."""
        return self.root / "log"

    def clear(self) -> None:
        """Empty the working folder and forget what was printed."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.log.unlink(missing_ok=True)

    def fill(self, job: Job) -> None:
        """Copy what a job finds in the working folder."""
        if job.given is not None:
            source, target = job.given
            shutil.copytree(self.inputs / source, self.work / target)


def undisturbed(job: Job, place: Place) -> Baseline:
    """Run a job twice without a disturbance; both runs must have the same results.

    Args:
        job: The command.
        place: Its folders.

    Raises:
        AssertionError: The job fails, or its results are not repeatable.
    """
    runs = []
    for _ in range(2):
        place.clear()
        place.fill(job)
        running = start(job.arguments(place.inputs), place.work, place.log, job.launcher, FileEvent(0))
        began = time.monotonic()
        ended = running.wait(_SECONDS_OF_A_RUN)
        seconds = time.monotonic() - began
        wrong = [] if ended and running.code == 0 else [f"exit code {running.code}"]
        wrong += running.alive_after(place.patience) + torn(place.work) + left_behind(place.work)
        if wrong:
            raise AssertionError(f"{job.name}: {wrong}\n{running.output()}")
        size = _size(place.work)
        runs.append(Baseline(seconds, running.changes(), size, results(place.work)))
        running.close()
        import_what_was_imported(place.root)
    if wrong := differences(runs[0].results, runs[1].results):
        raise AssertionError(f"{job.name}: two undisturbed runs differ: {wrong}")
    return runs[1]


def _size(folder: Path) -> int:
    """Return the bytes that a disk of memory needs for a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in files)


def kill_trial(job: Job, victim: Victim, baseline: Baseline, place: Place, rng: random.Random) -> Trial:
    """Kill a process of a run at a random moment, look at the files, and start the command again.

    Args:
        job: The command.
        victim: The process to kill.
        baseline: The undisturbed run.
        place: Its folders.
        rng: Source of the moment.
    """
    for attempt in range(_ATTEMPTS):
        place.clear()
        place.fill(job)
        trial, running = _killed(job, victim, baseline, place, rng, share=0.97 * 0.6**attempt)
        if running is not None:
            break
    else:
        trial.faults.append("no process could be killed before the end")
        return trial
    after_main = victim in ("main", "all")
    began = time.monotonic()
    if not after_main and not running.wait(_SECONDS_OF_A_RUN):
        trial.faults.append(f"runs on for {_SECONDS_OF_A_RUN:g} s")
    trial.faults += running.alive_after(place.patience)
    trial.code, trial.seconds = running.code, time.monotonic() - began
    if not after_main:
        trial.faults += _faults_of_end(job, running, trial.seconds, place)
    running.close()
    trial.faults += torn(place.work)
    trial.faults += _continued(job, baseline, place)
    return trial


def _killed(
    job: Job, victim: Victim, baseline: Baseline, place: Place, rng: random.Random, share: float
) -> tuple[Trial, Running | None]:
    """Start a job and kill the victim within a share of the undisturbed time; the run is None if it ended before."""
    at_change = baseline.changes > 0 and rng.random() < 0.5
    number = rng.randint(1, max(1, baseline.changes))
    itself = at_change and victim == "main" and rng.random() < 0.5
    delay = rng.uniform(0, 0.004) if at_change else rng.uniform(0, share) * baseline.seconds
    when = (
        f"change {number}" + ("" if itself else f" + {delay * 1000:.1f} ms")
        if at_change
        else f"{delay:.2f} s"
    )
    trial = Trial(job.name, f"{victim} at {when}")
    event = FileEvent(number, itself) if at_change else None
    running = start(job.arguments(place.inputs), place.work, place.log, job.launcher, event)
    if itself:
        running.wait(_SECONDS_OF_A_RUN)
        if running.code == -9:
            return trial, running
        running.close()
        return trial, None
    if at_change and not running.wait_for_event(_SECONDS_OF_A_RUN):
        running.close()
        return trial, None
    running.wait(delay)
    pids = _victims(victim, running, rng)
    for pid in pids:
        kill(pid)
    if pids:
        return trial, running
    running.close()
    return trial, None


def _victims(victim: Victim, running: Running, rng: random.Random) -> list[int]:
    if victim == "worker":
        end = time.monotonic() + 60  # seconds
        while not (workers := running.workers()) and running.code is None and time.monotonic() < end:
            time.sleep(0.01)  # not started yet
        return [rng.choice(workers)] if workers else []
    found = running.descendants()
    if running.pid not in found:
        return []
    return found if victim == "all" else [running.pid]


def _faults_of_end(job: Job, running: Running, seconds: float, place: Place) -> list[str]:
    """Return what is wrong with the end of a command that lost a worker or a rank."""
    output, found = running.output(), []
    expected = {0, 1 if job.launcher != "command" else _ENDED_BY_LACK}  # torchrun has codes of its own
    if running.code not in expected:
        found.append(f"exit code {running.code}, expected {sorted(expected)}: {_last_line(output)}")
    # torchrun prints its own.
    if "Traceback" in output and job.launcher != "torchrun":
        found.append(f"traceback: {_last_line(output)}")
    if running.code == _ENDED_BY_LACK and seconds > place.patience:
        found.append(f"ended after {seconds:.1f} s")
    return found


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _continued(job: Job, baseline: Baseline, place: Place) -> list[str]:
    """Start the command again, as after an interruption, and return what is wrong with its end and its results."""
    place.log.rename(place.log.with_name("log of the disturbed run"))
    running = start(job.next_arguments(place.inputs, place.work), place.work, place.log, job.launcher)
    ended = running.wait(_SECONDS_OF_A_RUN)
    found = running.alive_after(place.patience)
    if not ended or running.code != 0:
        found.append(f"next start: exit code {running.code}: {_last_line(running.output())}")
    running.close()
    found += torn(place.work) + left_behind(place.work)
    return found + differences(baseline.results, results(place.work))


def disk_trial(job: Job, baseline: Baseline, place: Place, rng: random.Random) -> Trial:
    """Run a job on a disk that is too small, look at its message and its files, and continue on a larger disk.

    Args:
        job: The command, which starts in an empty folder.
        baseline: The undisturbed run.
        place: Its folders.
        rng: Source of the size.
    """
    trial = Trial(job.name, "")
    for _ in range(_ATTEMPTS):
        place.clear()
        size = rng.randrange(_PAGE, baseline.size, _PAGE)
        trial.what = f"disk of {size // 1024} of {baseline.size // 1024} KiB"
        with small_disk(place.work, size) as enlarge:
            running = start(job.arguments(place.inputs), place.work, place.log, job.launcher)
            began = time.monotonic()
            ended = running.wait(_SECONDS_OF_A_RUN)
            trial.code, trial.seconds = running.code, time.monotonic() - began
            trial.faults = [] if ended else ["hangs"]
            trial.faults += running.alive_after(place.patience)
            output = running.output()
            running.close()
            if trial.code == 0 and not trial.faults:
                continue  # it needs less than its final size at no time
            trial.faults += _faults_of_message(job, trial.code, output) + torn(place.work)
            trial.faults += left_behind(place.work)
            enlarge()
            trial.faults += _continued(job, baseline, place)
            return trial
    trial.faults.append("no disk was too small")
    return trial


def _faults_of_message(job: Job, code: int | None, output: str) -> list[str]:
    found = []
    if code != _ENDED_BY_LACK and job.launcher != "torchrun":
        found.append(f"exit code {code}, expected {_ENDED_BY_LACK}: {_last_line(output)}")
    reasons = (
        "No space left on device",
        "free space: found",
    )  # while a file was written, or before work began
    messages = [line for line in output.splitlines() if "cannot be written" in line or reasons[1] in line]
    if job.launcher != "command":  # each rank may print it
        messages = list(dict.fromkeys(messages))
    if (
        len(messages) != 1
        or not any(reason in messages[0] for reason in reasons)
        or "Free space" not in messages[0]
    ):
        found.append(f"{len(messages)} messages: {messages[:3] or _last_line(output)}")
    if "Traceback" in output and job.launcher != "torchrun":
        found.append("traceback")
    return found


def can_mount(folder: Path) -> bool:
    """Return whether this user may mount a disk of memory."""
    try:
        with small_disk(folder, 1 << 20):
            return True
    except OSError:
        return False


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Mount a disk of memory on a folder.

    Args:
        folder: An existing folder.
        size: Bytes of the disk.

    Yields:
        A function that enlarges the disk to 1 GiB.

    Raises:
        OSError: Mounting is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    target = str(folder).encode()

    def mount(flags: int, options: str) -> None:
        if libc.mount(b"tmpfs", target, b"tmpfs", flags, options.encode()):
            raise OSError(ctypes.get_errno(), "mount", str(folder))

    remount = 32
    mount(0, f"size={size}")
    try:
        yield lambda: mount(remount, f"size={1 << 30}")
    finally:
        libc.umount2(target, 2)  # MNT_DETACH
