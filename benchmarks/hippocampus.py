"""Train, predict and evaluate the hippocampus experiments, and write the table to docs/measurements.md.

    python benchmarks/hippocampus.py Task04_Hippocampus --runs runs/hippocampus unet_3d unet_2d

An existing run is not trained again. Minutes are wall time from the start of ``medseg train`` to the finished model,
including preparation and validation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml
from measurements_page import machine, markdown, publish_section

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("unet_3d", "resunet_3d", "attention_unet_3d", "unet_2d", "fcn_2d", "maskformer_2d", "mask2former_2d")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of Task04_Hippocampus")
    parser.add_argument(
        "names", nargs="*", default=NAMES, help=f"names of experiments (default: {' '.join(NAMES)})"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/hippocampus"), help="folder of the runs")
    options = parser.parse_intermixed_args()
    for name in options.names:
        run = options.runs / name
        config = ROOT / "configs" / "hippocampus" / f"{name}.yaml"
        if not (run / "model").is_dir():
            _medseg("train", str(config), "--data", options.data, "--run", str(run))
        if not (run / "evaluation" / "summary.json").is_file():
            _medseg("predict", str(run), "--held-out")
            _medseg("evaluate", str(run))
    rows = [_row(options.runs / name, name) for name in options.names]
    header = [
        "config",
        "parameters",
        "steps x batch",
        "minutes",
        "Dice anterior",
        "Dice posterior",
        "mean Dice",
    ]
    header += ["HD95 mm", "surface Dice 1 mm"]
    publish_section("hippocampus", f"{machine()}.\n\n{markdown(header, rows)}")


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True)


def _row(run: Path, name: str) -> list[str]:
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    train = yaml.safe_load((run / "config.yaml").read_text())["train"]
    minutes = ((run / "model" / "manifest.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60
    card = (run / "model" / "README.md").read_text()
    parameters = next(part for part in card.split("|") if "parameters" in part).split(",", 1)[1].strip()
    labels = summary["labels"]
    dice = [labels[key]["dice"]["mean"] for key in ("Anterior", "Posterior")]
    mean = summary["foreground_mean"]
    return [
        f"`{name}`",
        parameters.removesuffix(" parameters"),
        f"{train['steps']} x {train['batch_size']}",
        f"{minutes:.0f}",
        *[f"{value:.3f}" for value in dice],
        f"**{mean['dice']:.3f}**",
        f"{mean['hd95_mm']:.2f}",
        f"{mean['surface_dice']:.3f}",
    ]


if __name__ == "__main__":
    main()
