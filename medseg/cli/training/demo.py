"""``medseg demo``: generate phantoms, train on them, predict, evaluate and draw figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# The same values as configs/phantom/unet_3d.yaml, so that an installed package needs no file. A test compares the two.
DEMO: dict[str, Any] = {
    "name": "phantom_unet_3d",
    "data": {"phantom": {"modality": "ct", "cases": 16}},
    "preprocess": {"spacing": [2.5, 2.5, 4.0]},
    "model": {"name": "unet_3d", "channels": [8, 16, 32, 64], "deep_supervision": True},
    "patch": {"size": [48, 48, 32]},
    "augment": {"mirror_axes": []},
    "train": {
        "steps": 300,
        "batch_size": 2,
        "batch_dice": True,
        "validate_every": 150,
        "optimizer": {"name": "adamw", "lr": 0.006, "weight_decay": 0.01},
    },
}


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("demo", help="train, predict and evaluate on phantoms", description=__doc__)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings to change, such as train.steps=50",
    )
    parser.add_argument(
        "--run", default="runs/demo", metavar="FOLDER", help="new run folder (default: runs/demo)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.cli.main import build_parser
    from medseg.cli.prediction import evaluate, predict
    from medseg.cli.training.train import train
    from medseg.config import apply_overrides
    from medseg.experiment.experiment import Experiment

    folder = Path(options.run)
    experiment = Experiment.parse(apply_overrides(DEMO, options.overrides), source="demo")
    print("1/4 phantoms and training")
    train(experiment, folder, resume=False)
    print("2/4 predicting the held-out cases")
    parser = build_parser()
    code = predict.run(parser.parse_args(["predict", str(folder), "--held-out"]))
    print("3/4 evaluating")
    code = max(code, evaluate.run(parser.parse_args(["evaluate", str(folder)])))
    print("4/4 drawing figures")
    for path in _write_figures(folder):
        print(path)
    return code


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    return ("plan", "YOUR_DATASET", "-o", "plan.yaml")


def _write_figures(folder: Path, most: int = 3) -> list[Path]:
    """Write the training curves and overlays of at most `most` held-out cases, and return the files."""
    from medseg.data.datasets.read_case import read_case_image
    from medseg.experiment.held_out import held_out_cases, held_out_pairs
    from medseg.experiment.run_folder import RunFolder
    from medseg.io.files import read_labels
    from medseg.train.reports.reporting import read_metrics
    from medseg.viz.figures import save_overlay, training_curves

    run, written = RunFolder(folder), [folder / "figures" / "training.png"]
    training_curves(written[0], read_metrics(run.metrics))
    _, labels, _ = held_out_pairs(run)
    for case in held_out_cases(run)[:most]:
        path = folder / "figures" / f"{case.id}.png"
        reference = read_labels(case.label) if case.label else None
        prediction = read_labels(run.predictions / f"{case.id}.nii.gz")
        save_overlay(path, read_case_image(case), prediction, labels, reference=reference, title=case.id)
        written.append(path)
    return written
