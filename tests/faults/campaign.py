"""Many trials from one seed, with a file of results by which an interrupted campaign goes on."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.jobs import JOBS, Job, write_inputs
from tests.faults.processes import adopt_orphans, run_apart
from tests.faults.trials import Baseline, Place, Trial, can_mount, disk_trial, kill_trial, undisturbed


def run(
    folder: Path,
    kills: int,
    disks: int,
    seed: int = 0,
    names: Sequence[str] | None = None,
    file: Path | None = None,
    patience: float = 10.0,
) -> int:
    """Run a campaign, print each trial and a table, and return the exit code: 1 if there are faults.

    Args:
        folder: Folder to work in.
        kills: Number of kills.
        disks: Number of full disks.
        seed: Seed of all trials.
        names: Names of the jobs; None for all.
        file: JSON lines of the trials that are done, to which new ones are appended; None keeps none.
        patience: Seconds in which all processes must end after a disturbance.
    """
    jobs = [job for job in JOBS if names is None or job.name in names]
    if names is not None and (unknown := sorted(set(names) - {job.name for job in jobs})):
        raise ValueError(f"unknown jobs: {unknown}; known are {[job.name for job in JOBS]}")
    place = Place(folder.resolve(), patience)
    place.work.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    if not place.inputs.is_dir():
        place.inputs.mkdir()
        run_apart(lambda: write_inputs(place.inputs), place.work, place.log)
    if disks and not can_mount(place.work):
        print("full disks are left out, because this user may not mount a disk of memory")
        disks = 0
    done = _read(file)
    baselines: dict[str, Baseline] = {}
    trials = []
    for name, job, disturbance in _order(jobs, kills, disks):
        key = f"{name}, seed {seed}"
        if key not in done:
            if job.name not in baselines:
                baselines[job.name] = undisturbed(job, place)
            done[key] = _trial(job, disturbance, baselines[job.name], place, random.Random(key))
            _append(file, key, done[key])
        trials.append(done[key])
        print(_line(key, done[key]), flush=True)
    print(*_table(trials), sep="\n")
    return 1 if any(trial.faults for trial in trials) else 0


def _order(jobs: Sequence[Job], kills: int, disks: int) -> Iterator[tuple[str, Job, int | None]]:
    """Yield name, job and number of each kill, and then of each full disk, whose number is None."""
    turns = [
        job for position in range(max(job.weight for job in jobs)) for job in jobs if position < job.weight
    ]
    for number in range(kills):
        job = turns[number % len(turns)]
        yield (
            f"kill {number}",
            job,
            number // len(turns) * job.weight + turns[: number % len(turns)].count(job),
        )
    empty = [job for job in jobs if job.given is None]
    for number in range(disks):
        yield f"disk {number}", empty[number % len(empty)], None


def _trial(job: Job, number: int | None, baseline: Baseline, place: Place, rng: random.Random) -> Trial:
    if number is None:
        return disk_trial(job, baseline, place, rng)
    return kill_trial(job, job.victims[number % len(job.victims)], baseline, place, rng)


def _read(file: Path | None) -> dict[str, Trial]:
    if file is None or not file.is_file():
        return {}
    rows = map(json.loads, file.read_text().splitlines())
    return {row.pop("key"): Trial(**row) for row in rows}


def _append(file: Path | None, key: str, trial: Trial) -> None:
    if file is not None:
        with file.open("a") as opened:
            opened.write(json.dumps({"key": key, **asdict(trial)}) + "\n")


def _line(key: str, trial: Trial) -> str:
    found = "; ".join(trial.faults) or "passed"
    return f"{key}\t{trial.job}\t{trial.what}\tcode {trial.code}, {trial.seconds:.1f} s\t{found}"


def _table(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the number of trials and of those with faults, by job and disturbance."""
    count = Counter((trial.job, _sort(trial)) for trial in trials)
    wrong = Counter((trial.job, _sort(trial)) for trial in trials if trial.faults)
    yield f"{'command':<24}{'disturbance':<12}{'trials':>7}{'faults':>8}{'longest end':>13}"
    for job, sort in sorted(count):
        longest = max(trial.seconds for trial in trials if (trial.job, _sort(trial)) == (job, sort))
        yield f"{job:<24}{sort:<12}{count[job, sort]:>7}{wrong[job, sort]:>8}{longest:>11.1f} s"
    yield f"{'all':<24}{'':<12}{len(trials):>7}{sum(wrong.values()):>8}"


def _sort(trial: Trial) -> str:
    return trial.what.split()[0]
