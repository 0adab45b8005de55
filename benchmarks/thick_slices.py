"""Compare the default plan of a dataset of few thick slices with its 2D and 3D variants, in the same time.

    python benchmarks/thick_slices.py work --cases 60 --minutes 20

The generated images resemble short-axis cine MR of the heart: 8 to 16 slices of 8 mm, pixels of 1.5 mm, and three labelled
structures (left ventricle, myocardium, right ventricle) among others of the same brightness. Each variant is planned by
``medseg plan``, trained on the first of five folds for the same time, one after the other, and evaluated on whole held-out
volumes. Variants whose plans are equal are trained once. A finished run is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measurements_page import machine, markdown, show_section
from numpy.typing import NDArray
from scipy import ndimage

import medseg
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = {"background": 0, "left_ventricle": 1, "myocardium": 2, "right_ventricle": 3}
VARIANTS = {"default": (), "2D": ("--dims", "2"), "3D": ("--dims", "3")}
PIXEL_MM, SLICE_MM = 1.5, 8.0
_SIGNAL = {"air": 20, "lung": 60, "fat": 420, "muscle": 170, "liver": 200, "blood": 380, "heart": 150}

Plane = NDArray[np.float64]


def write_hearts(folder: Path, cases: int, pixels: int, slices: tuple[int, int], seed: int = 0) -> None:
    """Write a dataset of generated hearts in the layout of the Medical Segmentation Decathlon.

    Args:
        folder: Folder to write; it is left alone if it is there already.
        cases: Number of cases.
        pixels: Pixels along both axes of a slice.
        slices: Fewest and most slices.
        seed: Seed of the dataset.
    """
    if (folder / "dataset.json").is_file():
        return
    training = []
    for number in range(cases):
        image, label = heart(np.random.default_rng((seed, number)), pixels, slices)
        grid = Grid.from_spacing(label.shape, (PIXEL_MM, PIXEL_MM, SLICE_MM))
        name = f"heart_{number:03d}.nii.gz"
        medseg.write(Volume(image[None], grid), folder / "imagesTr" / name)
        medseg.write(Volume(label[None], grid, "label"), folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": "hearts",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": cases,
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))


def heart(
    rng: np.random.Generator, pixels: int, slices: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image and its label map `(X, Y, Z)`, from the apex to the atria."""
    count = int(rng.integers(slices[0], slices[1] + 1))
    x, y = np.meshgrid(*[(np.arange(pixels) - pixels / 2) * PIXEL_MM] * 2, indexing="ij")
    size = rng.uniform(0.8, 1.2)
    centre, tilt = rng.uniform(-12, 12, 2), rng.uniform(-0.25, 0.25, 2)
    turn, squeeze = rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.0)
    wall = rng.uniform(7, 11)
    apex, length = rng.uniform(0.5, 2.5) * SLICE_MM, rng.uniform(60, 85) * size
    organs = _surroundings(rng, x, y)
    images, labels = [], []
    for z in np.arange(count) * SLICE_MM:
        shift = centre + tilt * (z - apex) + rng.normal(0, 1.5, 2)  # slices are acquired in different breaths
        u, v = _turned(x - shift[0], y - shift[1], turn)
        tissues = dict(organs)
        label = np.zeros(x.shape, np.uint8)
        height = (z - apex) / length  # 0 at the apex, 1 at the base
        if 0 <= height <= 1:
            _ventricles(tissues, label, u, v, height, 24 * size * squeeze, wall, 30 * size)
        elif height > 1:
            _atria(tissues, u, v, 26 * size)
        images.append(_signal(tissues, rng))
        labels.append(label)
    return _degraded(np.stack(images, -1), rng), np.stack(labels, -1)


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _surroundings(rng: np.random.Generator, x: Plane, y: Plane) -> dict[str, NDArray[np.bool_]]:
    """Return masks of the body outside the heart; later tissues cover earlier ones."""
    half = x.max()
    a, b = rng.uniform(0.85, 1.0) * half, rng.uniform(0.75, 0.95) * half
    aorta = rng.uniform(-0.1, 0.1, 2) * half + (-0.2 * half, -0.55 * half)
    return {
        "fat": (x / a) ** 2 + (y / b) ** 2 < 1,
        "muscle": (x / (a - 12)) ** 2 + (y / (b - 12)) ** 2 < 1,
        "lung": ((abs(x) - 0.55 * half) / (0.28 * half)) ** 2 + (y / (0.6 * half)) ** 2 < 1,
        "liver": ((x - 0.5 * half) / (0.4 * half)) ** 2 + ((y + 0.45 * half) / (0.25 * half)) ** 2 < 1,
        "blood": (x - aorta[0]) ** 2 + (y - aorta[1]) ** 2 < rng.uniform(9, 13) ** 2,
    }


def _ventricles(
    tissues: dict[str, NDArray[np.bool_]],
    label: NDArray[np.uint8],
    u: Plane,
    v: Plane,
    height: float,
    radius: float,
    wall: float,
    right: float,
) -> None:
    """Add the ventricles of one slice to its tissues and its label map."""
    taper = np.sqrt(1 - (1 - height) ** 2)
    cavity, outer = radius * taper, radius * taper + wall * (0.6 + 0.4 * taper)
    from_axis = np.hypot(u, v)
    crescent = ((u - outer * 0.75) / (right * taper * 0.9 + 1)) ** 2 + (
        v / (right * taper * 1.2 + 1)
    ) ** 2 < 1
    left, muscle = from_axis < cavity, (from_axis < outer) & (from_axis >= cavity)
    right_side = crescent & (from_axis >= outer + 1) & (height > 0.15)
    papillary = np.hypot(abs(u + cavity * 0.3) - cavity * 0.35, v) < 0.16 * cavity
    tissues["heart"] = muscle | (papillary & left)
    tissues["blood"] = tissues["blood"] | right_side | (left & ~papillary)
    label[muscle], label[left], label[right_side] = 2, 1, 3


def _atria(tissues: dict[str, NDArray[np.bool_]], u: Plane, v: Plane, radius: float) -> None:
    """Add two unlabelled cavities of the same brightness, above the ventricles."""
    left = (u / radius) ** 2 + (v / (0.8 * radius)) ** 2 < 1
    right = ((u - 1.8 * radius) / (0.8 * radius)) ** 2 + (v / radius) ** 2 < 1
    tissues["blood"] = tissues["blood"] | left | right


def _signal(tissues: dict[str, NDArray[np.bool_]], rng: np.random.Generator) -> Plane:
    image = np.full(tissues["fat"].shape, float(_SIGNAL["air"]))
    for name in ("fat", "muscle", "lung", "liver", "heart", "blood"):
        if name in tissues:
            image[tissues[name]] = _SIGNAL[name] * rng.normal(1, 0.04)
    return image


def _degraded(image: Plane, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the image with the limited resolution, the texture, the bias and the noise of a scanner."""
    texture = ndimage.gaussian_filter(rng.normal(size=image.shape), (2, 2, 0)) * 120
    ramp = np.linspace(-1, 1, image.shape[0])
    bias = np.exp(rng.normal(0, 0.25) * ramp[:, None, None] + rng.normal(0, 0.25) * ramp[None, :, None])
    blurred = ndimage.gaussian_filter(image + texture, (0.7, 0.7, 0.25))
    noisy = blurred * bias + rng.normal(0, rng.uniform(12, 28), image.shape)
    return np.asarray(np.maximum(noisy, 0) * rng.uniform(0.5, 3), np.float32)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for the dataset, the plans and the runs")
    parser.add_argument("--cases", type=int, default=60, help="number of cases (default: 60)")
    parser.add_argument("--pixels", type=int, default=160, help="pixels along a slice (default: 160)")
    parser.add_argument(
        "--slices", type=int, nargs=2, default=(8, 16), help="fewest and most slices (default: 8 16)"
    )
    parser.add_argument("--minutes", type=float, default=20, help="minutes of training (default: 20)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=tuple(VARIANTS))
    parser.add_argument("--no-table", action="store_true", help="print the table without writing the page")
    options = parser.parse_args()
    data = options.work / "hearts"
    write_hearts(data, options.cases, options.pixels, tuple(options.slices))
    runs: dict[str, tuple[Path, str]] = {}
    for name in options.variants:
        plan = options.work / f"{name}.yaml"
        if not plan.is_file():
            _medseg("plan", str(data), "-o", str(plan), *VARIANTS[name])
        experiment = medseg.Experiment.load(plan).to_plain()
        same = next((run for run, _ in runs.values() if _experiment(run) == experiment), None)
        run = same or options.work / f"{name}_{options.minutes:g}min"
        if same is None:
            _train(plan, run, options.minutes)
        runs[name] = run, _described(experiment)
    table = markdown(_HEADER, [_row(name, run, network) for name, (run, network) in runs.items()])
    text = (
        f"{options.cases} generated hearts of {options.slices[0]} to {options.slices[1]} slices of {SLICE_MM:g} mm, "
        f"{options.minutes:g} minutes of training each, Dice of whole held-out volumes of the first fold "
        f"(`benchmarks/thick_slices.py`).\n\n{machine()}.\n\n{table}"
    )
    show_section("thick_slices", text, publish=not options.no_table)


_HEADER = ("plan", "network", "steps", *(f"Dice {name}" for name in list(LABELS)[1:]), "mean Dice")


def _train(plan: Path, run: Path, minutes: float) -> None:
    if not (run / "model").is_dir():
        _medseg(
            "train", str(plan), "--run", str(run), f"train.max_time={minutes * 60:g}s", "train.steps=null"
        )
    (run / "experiment.json").write_text(json.dumps(medseg.Experiment.load(plan).to_plain()))
    if not (run / "evaluation" / "summary.json").is_file():
        _medseg("predict", str(run), "--held-out")
        _medseg("evaluate", str(run))


def _experiment(run: Path) -> Any:
    return json.loads((run / "experiment.json").read_text())


def _described(experiment: dict[str, Any]) -> str:
    size = " x ".join(map(str, experiment["patch"]["size"]))
    return f"`{experiment['model']['name']}`, patch {size}, batch {experiment['train']['batch_size']}"


def _medseg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "medseg", *arguments], check=True)


def _row(name: str, run: Path, network: str) -> list[str]:
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    steps = yaml.safe_load((run / "model" / "config.yaml").read_text())["trained_on"]["steps"]
    dice = [summary["labels"][label]["dice"]["mean"] for label in list(LABELS)[1:]]
    mean = summary["foreground_mean"]["dice"]
    return [name, network, f"{steps:,}", *(f"{value:.3f}" for value in dice), f"**{mean:.3f}**"]


if __name__ == "__main__":
    main()
