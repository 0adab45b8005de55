"""Compare imported tasks with TotalSegmentator's own code: label maps, names, seconds and peak memory.

    python -m venv ts && ts/bin/pip install TotalSegmentator==2.18.0
    python benchmarks/totalsegmentator.py train WORK --minutes 4
    python benchmarks/totalsegmentator.py compare WORK --python ts/bin/python
    python benchmarks/totalsegmentator.py golden WORK --python ts/bin/python

``train`` trains the networks of ``totalsegmentator_parts.py`` on CT phantoms with medseg, each until its mean Dice is .7 or its minutes
are over, and writes them to WORK/results as nnU-Net does. Networks that are there are not trained again.

``compare`` runs the tasks of these networks on another phantom, with TotalSegmentator and with ``medseg import totalsegmentator`` and
``medseg predict``, one after the other. It compares the label maps of the tasks, of each network (which gets the image that nnU-Net
received), and of the coarse model with the box that it gives. Seconds and memory are those of whole processes with all of their
children. Figures are written to WORK/comparison.json.

``golden`` writes the label maps of TotalSegmentator that tests compare with, for small networks whose weights are not trained.

TotalSegmentator is not a dependency of medseg; PYTHON is that of an environment that has it. See ``totalsegmentator_theirs.py`` for
what is replaced there. ``train`` and ``golden`` need ``pip install medseg[benchmark]``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray

from medseg.data.datasets.phantom import phantom_case
from medseg.inference.predictor import load
from medseg.interop.nnunet.model import import_nnunet
from medseg.interop.totalsegmentator.tasks import TASKS, Task, task_named
from medseg.io.files import write
from medseg.io.nifti.nifti_label_names import nifti_label_names
from medseg.runtime.memory import format_size
from medseg.storage.atomic import write_text

THEIRS = Path(__file__).with_name("totalsegmentator_theirs.py")
NAMES = ("total", "total_fastest", "body_fast", "liver_vessels")
IMAGE = "ct.nii.gz"
Figures = dict[str, Any]
Labels = NDArray[np.uint8]


def main() -> None:
    """Run one of the steps."""
    options = _parser().parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    {"train": _train, "compare": _compare, "golden": _golden}[options.step](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    train, compare, golden = (steps.add_parser(name) for name in ("train", "compare", "golden"))
    for one in (train, compare, golden):
        one.add_argument("work", type=Path, help="folder for phantoms, models and results")
    for one in (compare, golden):
        one.add_argument("--python", required=True, help="Python of an environment that has TotalSegmentator")
    for one in (train, compare):
        one.add_argument("--small", action="store_true", help="small phantoms and networks, to try it out")
    train.add_argument("--minutes", type=float, default=4, help="longest training of a network (default: 4)")
    train.add_argument(
        "--parts", type=int, nargs="+", help="numbers of the data sets to train (default: all)"
    )
    compare.add_argument("--tasks", nargs="+", choices=NAMES, default=NAMES, help="tasks (default: all)")
    compare.add_argument(
        "--exact", action="store_true", help="let nnU-Net add up logits in float32 instead of float16"
    )
    return parser


def _train(options: argparse.Namespace) -> None:
    import totalsegmentator_parts as parts

    size = parts.SMALL if options.small else parts.FULL
    lines = []
    for part in parts.PARTS:
        if options.parts is None or part.number in options.parts:
            found = parts.train_part(
                part, options.work / "results", options.work, size, minutes=options.minutes
            )
            each = ", ".join(f"{name} {value:.3f}" for name, value in found["dice"].items())
            lines.append(
                f"{part.folder}: Dice {found['mean']:.3f} ({each}) after {found['steps']} steps, "
                f"{found['minutes']:.1f} minutes{'' if found['mean'] >= parts.ENOUGH else ': NOT ENOUGH'}"
            )
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))


def _compare(options: argparse.Namespace) -> None:
    import totalsegmentator_parts as parts

    size = parts.SMALL if options.small else parts.FULL
    image = options.work / IMAGE
    volume, _ = phantom_case((8, 0), "ct", size.shape, size.spacing)
    write(volume, image)
    found: Figures = {"image": list(volume.data.shape[1:]), "exact": options.exact}
    for name in options.tasks:
        found[name] = _compare_task(options, task_named(name), image)
        print(json.dumps({name: found[name]}, indent=1), flush=True)
    write_text(options.work / "comparison.json", json.dumps(found, indent=1) + "\n")
    print(_table({name: found[name] for name in options.tasks}))


def _compare_task(options: argparse.Namespace, task: Task, image: Path) -> Figures:
    """Run a task with both tools and compare their results."""
    results, work = options.work / "results", options.work / task.name
    shutil.rmtree(work, ignore_errors=True)
    theirs, model, ours = work / "theirs", work / "model", work / "ours"
    theirs.mkdir(parents=True)
    switches = ["--exact"] if options.exact else []
    found: Figures = {
        "TotalSegmentator": _measured(
            _their_command(options.python, results, image, theirs, task.name) + switches
        ),
        "import": _measured(
            _medseg("import", "totalsegmentator", str(results), "--task", task.name, "-o", str(model))
        ),
        "medseg": _measured(_prediction(model, image, ours)),
        "versions": json.loads((theirs / "versions.json").read_text()),
        "label map": _agreement(theirs / IMAGE, ours / IMAGE),
        "same names": _names(theirs / IMAGE) == _names(ours / IMAGE),
        "networks": {str(number): _compare_network(results, work, task, number) for number in task.datasets},
    }
    if task.crop:
        found["coarse model"] = _compare_coarse(work, task, image)
    return found


def _compare_network(results: Path, work: Path, task: Task, number: int) -> Figures:
    """Compare what a network finds in the image that nnU-Net received."""
    (trained,) = results.glob(f"Dataset{number:03d}_*/*__*__{task.configuration}")
    model = work / "networks" / str(number)
    import_nnunet(trained, model, orientation="RAS")
    predictor = load(
        model, device="cpu", precision="float32", overlap=task.overlap, mirror_axes=[], skip_empty=False
    )
    kept = work / "theirs" / "networks"
    output = work / "networks" / f"{number}.nii.gz"
    write(predictor(kept / f"{number}_image.nii.gz"), output)
    return _agreement(kept / f"{number}.nii.gz", output)


def _compare_coarse(work: Path, task: Task, image: Path) -> Figures:
    """Compare the label maps of the first stage, and the boxes around the labels to which the image is cropped."""
    output = work / "coarse"
    found = _measured(_prediction(work / "model" / "first_stage", image, output))
    coarse = TASKS[task.crop_task]
    first, second = work / "theirs" / "coarse" / f"{coarse.datasets[0]}.nii.gz", output / IMAGE
    values = [coarse.labels.index(name) + 1 for name in task.crop.split()]
    boxes = [_box(_voxels(path), values) for path in (first, second)]
    return {**_agreement(first, second), "same box": boxes[0] == boxes[1], "box": boxes[1], "medseg": found}


def _box(voxels: Labels, values: Sequence[int]) -> list[tuple[int, int]]:
    inside = np.argwhere(np.isin(voxels, values))
    if not len(inside):
        return []
    return [(int(a), int(b) + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True)]


def _voxels(path: Path) -> Labels:
    return np.asanyarray(nib.load(path).dataobj)


def _agreement(first: Path, second: Path) -> Figures:
    """Return the shares of voxels with equal labels, the number of labels found, and whether shape and affine are equal."""
    a, b = _voxels(first), _voxels(second)
    if a.shape != b.shape:
        return {"same grid": False}
    equal, found = a == b, (a > 0) | (b > 0)
    return {
        "same grid": bool(np.allclose(nib.load(first).affine, nib.load(second).affine, atol=1e-4)),
        "equal": float(equal.mean()),
        "equal of foreground": float(equal[found].mean()) if found.any() else None,
        "labels": [len(np.unique(a)) - 1, len(np.unique(b)) - 1],
    }


def _names(path: Path) -> dict[int, str]:
    return {value: name for value, (name, _) in nifti_label_names(path).items() if value}


def _their_command(python: str, results: Path, image: Path, output: Path, task: str) -> list[str]:
    mode = task.rpartition("_")[2]
    name, switches = (task.rpartition("_")[0], [f"--{mode}"]) if mode in ("fast", "fastest") else (task, [])
    return [python, str(THEIRS), str(results), str(image), str(output), "--task", name, *switches]


def _medseg(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medseg", *arguments]


def _prediction(model: Path, image: Path, output: Path) -> list[str]:
    return _medseg(
        "predict", str(model), str(image), "-o", str(output), "--device", "cpu", "precision=float32"
    )


def _measured(command: list[str]) -> Figures:
    """Run a command; return its seconds, its processor seconds, and the peak memory of it and its children together."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = dict(os.environ)
    if command[0] != sys.executable:
        environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak, ended = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{output.decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "bytes": peak[0]}


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Keep the largest sum of the memory of a process and its children; pages that they share count once."""
    while not ended.wait(0.5):  # each look takes some milliseconds of the processor
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            total = 0
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += one.memory_full_info().pss
            peak[0] = max(peak[0], total)


def _table(found: Figures) -> str:
    """Return the figures as lines."""
    lines = []
    for name, task in found.items():
        shares = {"label map": task["label map"], **{f"network {n}": f for n, f in task["networks"].items()}}
        if "coarse model" in task:
            shares[f"coarse model, same box: {task['coarse model']['same box']}"] = task["coarse model"]
        lines += [f"{name}: {what}: {one.get('equal', 0):.4%} equal" for what, one in shares.items()]
        lines.append(f"{name}: same names: {task['same names']}, same grid: {task['label map']['same grid']}")
        lines += [
            f"{name}: {tool}: {task[tool]['seconds']:.1f} s, {task[tool]['cpu_seconds']:.1f} s of the processor, "
            f"{format_size(task[tool]['bytes'])}"
            for tool in ("TotalSegmentator", "medseg", "import")
        ]
    return "\n".join(lines)


def _golden(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.helpers.totalsegmentator_models import (
        GOLDEN,
        GOLDEN_TASKS,
        label_map_hash,
        write_golden_models,
    )

    GOLDEN.mkdir(exist_ok=True)
    image, results = GOLDEN / IMAGE, options.work / "results"
    shutil.rmtree(results, ignore_errors=True)
    weights = write_golden_models(results)
    # An oblique CT, a third of which is 0, so that the box around the liver is smaller than the image.
    volume, _ = phantom_case(4, "ct", shape=(52, 34, 26), spacing=(2.2, 2.4, 3.4))
    data = volume.data.copy()
    data[0, :20] = 0
    write(volume.with_data(data), image)
    files: Figures = {}
    for name in GOLDEN_TASKS:
        output = options.work / name
        shutil.rmtree(output, ignore_errors=True)
        _measured(_their_command(options.python, results, image, output, name))
        sources = {f"{name}.nii.gz": output / IMAGE}
        for path in (output / "coarse").iterdir():
            sources[f"{name}_coarse.nii.gz"] = path
        for file, path in sources.items():
            shutil.copyfile(path, GOLDEN / file)
            files[file] = label_map_hash(GOLDEN / file)
    versions = json.loads((output / "versions.json").read_text())
    record = {"made_by": versions, "weights": weights, "label_maps": files}
    write_text(GOLDEN / "golden.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
