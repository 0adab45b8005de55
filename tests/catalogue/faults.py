"""Entries 99 to 110: faults of a training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import psutil

from medseg.data.datasets.cases import Case
from medseg.data.patches import case_store
from medseg.inference.cohort import several_devices
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.several_devices import predict_on_devices
from tests.catalogue.bench import AFFINE, CONFIG, Bench
from tests.catalogue.promise import Answer, Broken, joined, recipe
from tests.helpers.children import Program, start_program
from tests.helpers.runs import files_of_at_most

SECONDS = 180


def config_of(bench: Bench, **train: Any) -> Path:
    """Return a config whose training takes long enough to be disturbed."""
    path = bench.folder / "long.yaml"
    text = CONFIG.replace("DATA", str(bench.dataset()))
    more = ", ".join(f"{key}: {value}" for key, value in train.items())
    path.write_text(text.replace("steps: 2,", "").replace("workers: 0", more))
    return path


def lines_until(process: Program, text: str) -> str:
    """Return the output of a process up to a line with a text."""
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise Broken(f"no line with {text!r}:\n{output}")


def end_of(process: Program, seconds: int = SECONDS) -> tuple[int, str]:
    """Return the exit code and the remaining output; raise if the process or a child goes on."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        text = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise Broken(f"not ended after {seconds} s") from None
    alive = psutil.wait_procs(children, timeout=60)[1]
    for child in alive:
        child.kill()
    if alive:
        raise Broken(f"{len(alive)} child processes live on")
    return process.returncode, text


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@recipe(99)
def divergence(bench: Bench) -> Answer:
    answer = bench.train(
        bench.dataset(), "train.optimizer.lr=1e30", "train.steps=30", "train.precision=float32"
    )
    if answer.code != 3:
        raise Broken(f"exit code {answer.code}, expected 3:\n{answer.text}")
    return answer


@recipe(101)
def killed_loader(bench: Bench) -> Answer:
    config = config_of(bench, steps=5000, workers=2, save_every=2)
    run = bench.folder / "run"
    process = bench.start("train", config, "--run", run)
    before = lines_until(process, "step 5/")
    loaders = [child for child in psutil.Process(process.pid).children() if child.name() != "cat"]
    max(loaders, key=lambda child: child.pid).kill()
    code, text = end_of(process)
    if code != 4 or not list((run / "last").glob("step-*")):
        raise Broken(f"exit code {code}:\n{before}{text}")
    return Answer(code, text)


@dataclass(frozen=True)
class KilledAtOne:
    """Writes a file per case; one case ends the process each time."""

    def __call__(self, device: str, pairs: Sequence[tuple[Case, Path]]) -> Iterator[Outcome]:
        for case, target in pairs:
            if case.id == "fatal":
                os.kill(os.getpid(), signal.SIGKILL)
            target.write_text(device)
            yield Outcome(case, target)


@recipe(101, 1)
def killed_prediction(bench: Bench) -> Answer:
    names = [*(f"c{number}" for number in range(12)), "fatal"]
    pairs = [(Case(name, (bench.folder / name,)), bench.folder / f"{name}.txt") for name in names]
    fork = multiprocessing.get_context("fork")  # which saves the imports of new interpreters
    with patch.object(several_devices.multiprocessing, "get_context", lambda method: fork):
        outcomes = list(predict_on_devices(KilledAtOne(), ("a", "b"), pairs, lambda note: None))
    failed = [one for one in outcomes if one.error is not None]
    if [one.case.id for one in failed] != ["fatal"] or len(list(bench.folder.glob("c*.txt"))) != 12:
        raise Broken("other cases failed")
    return Answer(2, str(failed[0].error))


SMALL_SHARED_MEMORY = """
import ctypes, os, sys

from medseg.cli.main import main

libc = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACE, PRIVATE_TREE = 1 << 17, 1 << 14 | 1 << 18
if (
    libc.unshare(NEW_NAMESPACE)
    or libc.mount(None, b"/", None, PRIVATE_TREE, None)
    or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k")
):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
sys.exit(main())
"""


@recipe(102)
def small_shared_memory(bench: Bench) -> Answer:
    config = config_of(bench, steps=2, workers=2, batch_size=16)
    (bench.folder / "small.py").write_text(SMALL_SHARED_MEMORY)
    words = ("train", config, "--run", bench.folder / "run", "patch.size=[20,20,20]")
    code, text = end_of(start_program(bench.folder / "small.py", *words, errors_in_output=True))
    if code not in (0, 4):
        raise Broken(f"exit code {code}:\n{text}")
    return Answer(code, text)


@recipe(103)
def terminated(bench: Bench) -> Answer:
    config = config_of(bench, steps=5000, workers=0)
    run = bench.folder / "run"
    process = bench.start("train", config, "--run", run)
    lines_until(process, "step 3/")
    process.send_signal(signal.SIGTERM)
    code, text = end_of(process)
    if code != 143:
        raise Broken(f"exit code {code}, expected 143:\n{text}")
    return Answer(code, text)


@recipe(104)
def killed(bench: Bench) -> Answer:
    config = config_of(bench, steps=12, workers=0, save_every=1)
    whole, run = bench.folder / "whole", bench.folder / "run"
    bench.run("train", config, "--run", whole)
    process = bench.start("train", config, "--run", run)
    lines_until(process, "step 6/")
    process.kill()
    end_of(process)
    answer = bench.run("train", "--resume", run)
    if answer.code or weights(whole) != weights(run):
        raise Broken(f"other weights after a resume:\n{answer.text}")
    if joined(run):
        raise Broken(f"temporary files are left: {joined(run)}")
    return answer


@recipe(105)
def full_disk(bench: Bench) -> Answer:
    root = bench.dataset()
    bench.train(root, "train.steps=1")
    with files_of_at_most(20_000):
        answer = bench.train(root, "model.channels=[8,16]")
    if answer.code == 0:
        raise Broken("not noticed")
    if joined(bench.folder):
        raise Broken(f"temporary files are left: {joined(bench.folder)}")
    return answer


@recipe(107)
def killed_rank(bench: Bench) -> Answer:
    config = config_of(bench, steps=5000, workers=0, save_every=2)
    run = bench.folder / "run"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "medseg")
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = (*launch, "train", config, "--run", run)
    process = start_program(*words, env={**os.environ, **more}, errors_in_output=True)
    lines_until(process, "step 6/")
    ranks = [one for one in psutil.Process(process.pid).children() if "train" in one.cmdline()]
    max(ranks, key=lambda one: one.pid).kill()
    code, text = end_of(process)
    if code == 0 or not list((run / "last").glob("step-*/manifest.json")):
        raise Broken(f"exit code {code}:\n{text}")
    if "[rank0]: Traceback" in text:
        raise Broken(f"traceback of the other rank:\n{text}")
    return Answer(code, "\n".join(line for line in text.splitlines() if "medseg train" in line))


def locked(bench: Bench, pid: int) -> tuple[Path, Path]:
    """Return a config and a run that a process holds."""
    import platform

    config = config_of(bench, steps=2, workers=0)
    run = bench.folder / "run"
    run.mkdir()
    (run / "lock").write_text(json.dumps({"host": platform.node(), "pid": pid, "id": "x"}))
    return config, run


@recipe(108)
def second_run(bench: Bench) -> Answer:
    config, run = locked(bench, os.getppid())
    return bench.run("train", config, "--run", run)


@recipe(108, 1)
def stale_lock(bench: Bench) -> Answer:
    ended = subprocess.Popen(["true"])
    ended.wait()
    config, run = locked(bench, ended.pid)
    answer = bench.run("train", config, "--run", run)
    if answer.code:
        raise Broken(f"refused:\n{answer.text}")
    return answer


@recipe(109)
def same_time_and_size(bench: Bench) -> Answer:
    root = bench.dataset()
    bench.train(root)
    for path in (root / "imagesTr").iterdir():
        before = path.stat()
        data = np.asarray(nib.load(path).dataobj).copy()
        nib.save(nib.Nifti1Image(data[::-1].copy(), AFFINE), path)
        content = path.read_bytes()
        path.write_bytes(content[: before.st_size] + bytes(max(0, before.st_size - len(content))))
        if len(content) > before.st_size:
            path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    answer = bench.train(root)
    if weights(bench.folder / "run1") == weights(bench.folder / "run2"):
        raise Broken("trained on the old voxels")
    return answer


@recipe(110)
def damaged_case(bench: Bench) -> Answer:
    root = bench.dataset()
    bench.train(root)
    for path in (bench.folder / ".prepared").glob("*/image.npy"):
        path.write_bytes(b"damaged")
    case_store._mapped.cache_clear()
    answer = bench.train(root)
    if answer.code == 0:
        raise Broken("not noticed")
    return answer
