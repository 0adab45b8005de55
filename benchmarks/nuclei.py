"""Train, predict and evaluate the nuclei experiments, write the table to docs/measurements.md, and draw overlays.

    python benchmarks/nuclei.py nuclei --runs runs/nuclei --minutes 5

An existing run is not trained again. With `--minutes`, every training has the same time. Instances of the U-Net are the connected components of its label maps. Metrics
are of all held-out images together. Minutes are wall time from the start of ``medseg train`` to the finished
model, preparation and validation included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from measurements_page import machine, markdown, publish_section

from medseg.data.datasets.read_case import read_case_image
from medseg.experiment.held_out import held_out_cases
from medseg.experiment.run_folder import RunFolder
from medseg.io.companions.instance_files import instance_map_path
from medseg.io.files import read_labels
from medseg.train.reports.reporting import read_metrics
from medseg.viz.instance_overlays import instance_figure

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("mask_rcnn", "unet_2d", "instance_unet")
HEADER = (
    "config",
    "parameters",
    "steps x batch",
    "minutes",
    "AP",
    "AP50",
    "PQ",
    "F1",
    "matched",
    "references",
)


def main() -> None:
    """Run what is missing, write the table and draw overlays."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder with images and instances")
    parser.add_argument(
        "names",
        nargs="*",
        default=NAMES,
        help=f"names of experiments, also mask2former (default: {' '.join(NAMES)})",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/nuclei"), help="folder of the runs")
    parser.add_argument(
        "--figures", type=int, default=3, metavar="N", help="number of held-out images to draw"
    )
    parser.add_argument(
        "--minutes", type=float, help="time of each training (default: the steps of its config)"
    )
    options = parser.parse_intermixed_args()
    length = (
        [] if options.minutes is None else ["train.steps=null", f"train.max_time={options.minutes * 60:.0f}s"]
    )
    for name in options.names:
        _run(options.runs / name, ROOT / "configs" / "nuclei" / f"{name}.yaml", options.data, length)
    rows = [_row(options.runs / name, name) for name in options.names]
    title = "Held-out fifth of 159 images of nuclei, trained from scratch (`benchmarks/nuclei.py`)."
    publish_section("nuclei", f"{title}\n\n{machine()}.\n\n{markdown(HEADER, rows)}")
    for name in options.names:
        for path in _write_figures(options.runs / name, options.figures):
            print(path)


def _run(run: Path, config: Path, data: str, length: Sequence[str]) -> None:
    if not (run / "model").is_dir():
        _medseg("train", str(config), "--data", data, "--run", str(run), *length)
    if not (run / "evaluation" / "instances" / "summary.json").is_file():
        _medseg("predict", str(run), "--held-out", *(["--instances"] if _finds_instances(run) else []))
        _medseg("evaluate", str(run), "--instances")


def _finds_instances(run: Path) -> bool:
    return not _config(run)["model"]["name"].startswith(("unet", "resunet", "attention_unet", "fcn"))


def _config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def _steps(run: Path) -> int:
    """Return the number of steps that a run took."""
    return int(read_metrics(run / "metrics.jsonl")[-1]["step"])


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True)


def _row(run: Path, name: str) -> list[str]:
    (figures,) = json.loads((run / "evaluation" / "instances" / "summary.json").read_text())[
        "labels"
    ].values()
    pooled, train = figures["pooled"], _config(run)["train"]
    minutes = ((run / "model" / "manifest.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60
    card = (run / "model" / "README.md").read_text()
    parameters = next(part for part in card.split("|") if "parameters" in part).split(",", 1)[1].strip()
    return [
        f"`{name}`",
        parameters.removesuffix(" parameters"),
        f"{_steps(run)} x {train['batch_size']}",
        f"{minutes:.0f}",
        *(f"{pooled[key]:.3f}" for key in ("ap", "ap50", "pq", "f1")),
        str(pooled["tp"]),
        str(pooled["references"]),
    ]


def _write_figures(run: Path, count: int) -> list[Path]:
    """Draw contours of reference and prediction over some held-out images."""
    cases = held_out_cases(RunFolder(run))
    chosen = [cases[len(cases) * number // count] for number in range(min(count, len(cases)))]
    paths = []
    for case in chosen:
        labels = run / "predictions" / f"{case.id}.nii.gz"
        found = instance_map_path(labels)
        ids = read_labels(found if found.is_file() else labels)
        reference = read_labels(case.instances) if case.instances is not None else None
        path = run / "figures" / f"{case.id}.png"
        instance_figure(read_case_image(case), ids, reference).save(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
