"""Engines for processors: PyTorch, ONNX Runtime and OpenVINO in float32, and OpenVINO with 8-bit integers, with trained networks.

    python benchmarks/quantization.py --runs runs/quantization --minutes 20
    python benchmarks/quantization.py --runs runs/quantization --hippocampus Task04_Hippocampus

The large network is nnU-Net's 3D U-Net for patches of 128³ voxels: six stages of 32 to 320 channels, 31 million parameters. It is
trained on CT phantoms. With ``--hippocampus``, the network of ``configs/hippocampus/unet_3d.yaml`` follows, or that of an existing run
(``--hippocampus-run``, which is copied). For each network, the parts are

- ``train``: train for the given minutes;
- ``quantize``: calibrate 8-bit integers on training cases, and measure the loss of Dice on held-out cases (``medseg quantize``);
- ``engines``: predict the same held-out cases with each engine, in a process of its own and within the same memory limit;
- ``window``: single windows of the training patch, and for the large network also of 128³ voxels.

Each part prints its results when it ends and keeps them in RUNS, so that an interrupted call continues where it stopped; delete
RUNS/results.json to measure again with the same networks. Seconds of the processor are those of all threads, in the kernel and outside.

Needs ``pip install medseg[onnx,openvino]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from quantization_report import ENGINES, dice_table, engine_table, report
from worker_process import Figures, answer, run_worker

ROOT = Path(__file__).resolve().parents[1]
STAGES = 6
LARGE_WINDOW = 128
LARGE_WINDOW_CALIBRATION = 4  # windows; the speed does not depend on the ranges
UNUSED = ("best", "last", "predictions", "evaluation", "int8")  # files of a run that are not copied


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        name: Name of its folder in RUNS and of its results.
        title: Heading of its tables.
        run: Folder of its training.
        large_window: Whether windows of 128³ voxels are measured, too.
    """

    name: str
    title: str
    run: Path
    large_window: bool


def main() -> None:
    """Run what is missing, and print the tables."""
    if sys.argv[1:2] == ["--worker"]:
        # As the medseg command does, before torch is imported: threads that wait take no processor time.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import quantization_workers

        answer(quantization_workers, sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = _parser()
    options = parser.parse_intermixed_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts: found {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    options.runs = options.runs.resolve()
    options.runs.mkdir(parents=True, exist_ok=True)
    networks = [_large(options)]
    if options.hippocampus or options.hippocampus_run:
        networks.append(_hippocampus(options))
    for network in networks:
        for part in options.parts:
            if part not in _results(options.runs).get(network.name, {}):
                print(f"{network.title}: {part}", flush=True)
                _keep(options.runs, network, part, PARTS[part](options, network))
    titles = {network.name: network.title for network in networks}
    report(_results(options.runs), titles, publish=options.publish)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", default=tuple(PARTS), help=f"parts to run: {' '.join(PARTS)} (default: all)")
    add("--runs", type=Path, required=True, help="folder for data, networks and results")
    add("--minutes", type=float, default=20, help="minutes of training per network (default: 20)")
    add("--cases", type=int, default=60, help="phantoms, of which a third is held out (default: 60)")
    add("--channels", type=int, default=32, help="channels of the first stage (default: 32)")
    add("--patch", type=int, default=64, help="voxels of a training patch along each axis (default: 64)")
    add("--windows", type=int, default=300, help="windows to calibrate on (default: 300)")
    add("--max-loss", type=float, default=0.002, help="loss of Dice that is allowed (default: 0.002)")
    add("--max-memory", default="4GB", help="memory limit of all engines (default: 4GB)")
    add("--most-cases", type=int, default=40, help="held-out cases to measure at most (default: 40)")
    add("--calls", type=int, default=3, help="measured calls of a single window (default: 3)")
    add("--hippocampus", type=Path, metavar="DATASET", help="folder of Task04_Hippocampus")
    add(
        "--hippocampus-run",
        type=Path,
        metavar="RUN",
        help="finished run or fold, whose training is not repeated",
    )
    add("--publish", action="store_true", help="write the tables to docs/measurements.md")
    return parser


def _large(options: argparse.Namespace) -> Network:
    return Network("large", "3D U-Net on CT phantoms", options.runs / "large", large_window=True)


def _hippocampus(options: argparse.Namespace) -> Network:
    return Network("hippocampus", "3D U-Net of the hippocampus", options.runs / "hippocampus", False)


def _part_train(options: argparse.Namespace, network: Network) -> Figures:
    """Train a network, or copy the run that was trained before."""
    run = network.run
    if not (run / "model").is_dir():
        if network.name == "hippocampus" and options.hippocampus_run is not None:
            shutil.copytree(
                options.hippocampus_run, run, ignore=shutil.ignore_patterns(*UNUSED), dirs_exist_ok=True
            )
        elif (run / "last").is_dir():
            _medseg("train", "--resume", str(run))
        else:
            budget = (f"train.max_time={options.minutes:g}m", "train.steps=null")
            _medseg("train", *_experiment(options, network), *budget, "--run", str(run))
    return {"steps": _steps(run), "parameters": _parameters(run)}


def _experiment(options: argparse.Namespace, network: Network) -> tuple[str, ...]:
    """Return the arguments of ``medseg train`` that name the experiment and its data."""
    if network.name == "hippocampus":
        config = ROOT / "configs" / "hippocampus" / "unet_3d.yaml"
        return str(config), "--data", str(options.hippocampus)
    from medseg.data.datasets.phantom import write_phantoms

    data = options.runs / "phantoms"
    if not (data / "dataset.json").is_file():  # written last
        write_phantoms(data, cases=options.cases)
    config = options.runs / "large.yaml"
    config.write_text(yaml.safe_dump(_large_experiment(options, data)))
    return (str(config),)


def _large_experiment(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Return the experiment of the large network; a patch of 64 voxels covers most of a phantom at this spacing."""
    from medseg.planning.nnunet.presets import widths

    divisor = 32 // options.channels
    return {
        "name": "large",
        "data": {"path": str(data), "folds": 3},
        "preprocess": {"spacing": [1.5, 1.5, 1.5]},
        "model": {
            "name": "unet_3d",
            "channels": [width // divisor for width in widths(STAGES, 3)],
            "num_blocks": 2,
            "deep_supervision": True,
        },
        "patch": {"size": [options.patch] * 3},
        "augment": {"mirror_axes": []},  # a short training learns more without mirroring
        "train": {
            "batch_size": 1,
            "validation_batches": 0,
            "save_every": 50,
            "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01, "warmup_steps": 50},
        },
    }


def _part_quantize(options: argparse.Namespace, network: Network) -> Figures:
    measured = network.run / "model" / "int8" / "measured.json"
    if not measured.is_file():
        limits = ("--windows", str(options.windows), "--measured-cases", str(options.most_cases))
        _medseg("quantize", str(network.run), *limits, "--max-loss", str(options.max_loss))
    figures: Figures = json.loads(measured.read_text())
    print(dice_table(figures), flush=True)
    return figures


def _part_engines(options: argparse.Namespace, network: Network) -> Figures:
    """Predict held-out cases with each engine, and compare the label maps with those of PyTorch."""
    from quantization_workers import agreement

    found: Figures = {}
    for name, (engine, precision) in ENGINES.items():
        folder = network.run / "engines" / name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found[name] = run_worker(
            __file__,
            "predict",
            run=network.run,
            output=folder,
            engine=engine,
            precision=precision,
            max_memory=options.max_memory,
            most_cases=options.most_cases,
        )
        _require(found[name], name)
        equal, worst = agreement(folder, folder.with_name(next(iter(ENGINES)).replace(" ", "_")))
        found[name] |= {"agreement": equal, "worst_agreement": worst, "max_memory": options.max_memory}
        print(engine_table({"engines": found}), flush=True)
    return found


def _part_window(options: argparse.Namespace, network: Network) -> Figures:
    """Measure single windows; those of 128³ voxels with the same weights, calibrated on a few windows of that size."""
    folders = {"patch": network.run / "model"}
    if network.large_window:
        folders["large"] = network.run / f"model_{LARGE_WINDOW}"
        if not (folders["large"] / "int8" / "manifest.json").is_file():
            shutil.rmtree(folders["large"], ignore_errors=True)
            ends = json.loads((network.run / "model" / "int8" / "measured.json").read_text())["float_ends"]
            settings = {"size": LARGE_WINDOW, "windows": LARGE_WINDOW_CALIBRATION, "float_ends": ends}
            found = run_worker(__file__, "enlarge", run=network.run, output=folders["large"], **settings)
            _require(found, f"windows of {LARGE_WINDOW}³ voxels")
    windows: Figures = {name: {} for name in folders}
    for size, folder in folders.items():
        for name, (engine, precision) in ENGINES.items():
            settings = {"engine": engine, "precision": precision, "calls": options.calls}
            windows[size][name] = run_worker(__file__, "window", model=folder, **settings)
            _require(windows[size][name], name)
            print(size, name, windows[size][name], flush=True)
    return windows


def _require(figures: Figures, what: str) -> None:
    if "failed" in figures:
        raise SystemExit(f"{what}: {figures['failed']}")


def _steps(run: Path) -> int:
    """Return the steps of a training."""
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def _parameters(run: Path) -> int:
    """Return the number of parameters of a run's network."""
    from medseg.model_folder.folder import load_model

    return sum(parameter.numel() for parameter in load_model(run / "model")[0].parameters())


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True)


def _results(runs: Path) -> dict[str, Figures]:
    path = runs / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _keep(runs: Path, network: Network, part: str, found: Figures) -> None:
    results = _results(runs)
    results.setdefault(network.name, {})[part] = found
    (runs / "results.json").write_text(json.dumps(results, indent=1))


PARTS: dict[str, Callable[[argparse.Namespace, Network], Figures]] = {
    "train": _part_train,
    "quantize": _part_quantize,
    "engines": _part_engines,
    "window": _part_window,
}


if __name__ == "__main__":
    main()
