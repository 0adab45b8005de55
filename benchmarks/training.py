"""Compare training in medseg, nnU-Net and MONAI: the same network and cases, each tool in its own process.

    python benchmarks/training.py Task04_Hippocampus --work /tmp/training step augment
    python benchmarks/training.py Task04_Hippocampus --work /tmp/training curve --minutes 39 --publish

``step`` measures training steps, ``augment`` the augmentation of a patch on one thread, and ``curve`` the Dice of held-out cases
against the minutes of training. For ``step`` and ``augment``, the tools take turns, and those that wait are stopped together
with their workers, so that a busy machine affects all of them alike. Parts can be run one by one, and an interrupted ``curve``
continues. Results are in WORK/results.json; tables and the plot WORK/training.png are created from all results.

Needs ``pip install medseg[benchmark]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from training_nnunet import link_held_out
from training_report import report
from training_turns import Turn, call, serve, take_turns

SCRIPT = Path(__file__)
PARTS = ("step", "augment", "curve")
SHARES = (1 / 13, 3 / 13, 9 / 13)  # of the minutes, a training each


def main() -> None:
    """Run the parts and report their results."""
    if sys.argv[1:2] == ["--worker"]:
        import training_workers

        return serve(training_workers, sys.argv[2], json.loads(sys.argv[3]))
    # End the processes of all tools together with this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = _parser().parse_intermixed_args()
    options.work.mkdir(parents=True, exist_ok=True)
    _prepare(options)
    for part in options.parts:
        {"step": _step, "augment": _augment, "curve": _curve}[part](options)
    report(_results(options.work), options.work, publish=options.publish)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of Task04_Hippocampus")
    parser.add_argument(
        "parts", nargs="*", default=PARTS, help=f"parts to run: {' '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for prepared cases, models and results"
    )
    parser.add_argument("--rounds", type=int, default=6, help="rounds of `step` and `augment` (default: 6)")
    parser.add_argument("--steps", type=int, default=4, help="steps per round of `step` (default: 4)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=39,
        help="minutes of `curve` for all trainings of one tool together (default: 39)",
    )
    parser.add_argument("--publish", action="store_true", help="write the tables to docs/measurements.md")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    """Create the plans, and nnU-Net's prepared cases and split, which all tools use.

    ``curve`` trains medseg's plan for this machine. The other parts use its plan for nnU-Net's GPU, whose network, batch
    and recipe are the same as nnU-Net's.
    """
    if not (options.work / "splits_final.json").is_file():
        call(SCRIPT, "prepare_nnunet", data=options.data, work=options.work)
    if not (options.work / "plan.yaml").is_file():
        _medseg("plan", str(options.data), "-o", str(options.work / "plan.yaml"))
    if not (options.work / "same.yaml").is_file():
        _medseg(
            "plan",
            str(options.data),
            "-o",
            str(options.work / "same.yaml"),
            "--device",
            "cuda",
            "--memory",
            "8GiB",
        )


def _step(options: argparse.Namespace) -> None:
    work, cores = str(options.work), os.cpu_count() or 1
    turns = [
        # As many processes as nnU-Net takes by itself, for MONAI too.
        Turn("nnU-Net", "step_nnunet", {"work": work}),
        Turn("MONAI", "step_monai", {"work": work, "workers": min(12, cores)}),
    ]
    for precision in ("float32", "bfloat16") if _has_amx() else ("float32",):
        for workers in (0, 1):
            name = f"medseg {precision}, {workers} workers"
            settings = {"work": work, "workers": workers, "precision": precision}
            turns.append(Turn(name, "step_medseg", settings))
    _save(options.work, "step", take_turns(SCRIPT, turns, options.rounds, options.steps))
    for run in (options.work / "runs").glob("step_*"):
        shutil.rmtree(run)


def _augment(options: argparse.Namespace) -> None:
    names = {"nnU-Net (batchgeneratorsv2)": "nnunet", "MONAI": "monai", "medseg": "medseg"}
    turns = [Turn(name, f"augment_{who}", {"work": str(options.work)}) for name, who in names.items()]
    _save(options.work, "augment", take_turns(SCRIPT, turns, options.rounds, count=10))


def _curve(options: argparse.Namespace) -> None:
    """Train once per fraction of the minutes, with a rate that falls to 0 at the end; existing results are kept."""
    points = _results(options.work).get("curve", [])
    known = {(point["peer"], point["minutes"]) for point in points}
    for minutes in (round(share * options.minutes, 2) for share in SHARES):
        for peer, train in (("medseg", _medseg_point), ("nnU-Net", _nnunet_point)):
            if (peer, minutes) not in known:
                points.append({"peer": peer, "minutes": minutes, **train(options, minutes)})
                _save(options.work, "curve", points)
                print(points[-1], flush=True)


def _medseg_point(options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    run = options.work / "runs" / f"curve_{minutes:g}"
    if not (run / "model").is_dir():
        if (run / "last").is_dir():
            _medseg("train", "--resume", str(run))
        else:
            own = [f"train.max_time={minutes:g}m", "train.steps=null", "data.fold=0"]
            own.append(f"data.splits={(options.work / 'splits_final.json').resolve()}")
            _medseg("train", str(options.work / "plan.yaml"), *own, "--run", str(run))
    _medseg("predict", str(run), "--held-out", "--skip-existing")
    _medseg("evaluate", str(run))
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return {**_dice(run / "evaluation"), "steps": steps}


def _nnunet_point(options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    name, output = f"minutes_{minutes:g}", options.work / "nnunet" / "predicted" / f"{minutes:g}"
    figures = call(SCRIPT, "train_nnunet", work=options.work, minutes=minutes, checkpoint=name)
    call(SCRIPT, "predict_nnunet", work=options.work, checkpoint=name, output=output)
    held_out = link_held_out(options.data, options.work, "labelsTr")
    evaluation = output.with_name(f"{output.name}_evaluation")
    _medseg("evaluate", str(output), str(held_out), "-o", str(evaluation))
    return {**_dice(evaluation), **figures}


def _dice(evaluation: Path) -> dict[str, Any]:
    summary = json.loads((evaluation / "summary.json").read_text())
    return {
        "dice": summary["foreground_mean"]["dice"],
        "hd95_mm": summary["foreground_mean"]["hd95_mm"],
        "labels": {name: figures["dice"]["mean"] for name, figures in summary["labels"].items()},
    }


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True)


def _results(work: Path) -> dict[str, Any]:
    path = work / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _save(work: Path, part: str, found: Any) -> None:
    (work / "results.json").write_text(json.dumps({**_results(work), part: found}, indent=1))


def _has_amx() -> bool:
    from medseg.runtime.devices import has_amx

    return has_amx()


if __name__ == "__main__":
    main()
