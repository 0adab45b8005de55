"""Compare ways to find touching instances in volumes, and write the tables to docs/measurements.md.

    python benchmarks/instances.py --folder runs/instances --minutes 4

Forty phantoms of 56³ voxels with 30 ellipsoids each, which touch and are equally bright, are generated. An instance U-Net for
volumes and one for slices are trained on twenty of them, each for as many minutes. On the other twenty, four methods are
compared: the offsets of the network for volumes; a watershed of the distances that the same network predicts; the connected
components of its label maps; and the instances that the network for slices finds, linked across slices. An existing run is not
trained again.

The second table is the memory of the prediction of volumes of several depths.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from measurements_page import machine, markdown, publish_section
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import instance_phantom, write_instance_phantoms
from medseg.data.datasets.read_case import read_case_image, read_case_instances
from medseg.evaluation.instances.pairs import evaluate_instances
from medseg.inference.instances.volume_instances import centre_engine
from medseg.inference.predictor import Predictor, load
from medseg.io.companions.instance_files import write_instances
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.models.unet.instance_unet import InstanceUNet
from medseg.runtime.memory import PeakMemory, format_size
from medseg.train.reports.reporting import read_metrics
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

Floats = NDArray[np.floating]
TRAINED, HELD_OUT = 20, 20
SIDE = 56
DEPTHS = (56, 168, 504)
MODELS = {
    "volumes": {
        "model": {"name": "instance_unet_3d", "channels": [12, 24, 48]},
        "patch": {"size": [32, 32, 32]},
        "predict": {"overlap": 0.25},
    },
    "slices": {"model": {"name": "instance_unet_2d", "channels": [16, 32, 64]}, "patch": {"size": [56, 56]}},
}
BATCHES = {"volumes": 2, "slices": 16}
HEADER = ("method", "F1", "AP50", "AP", "PQ", "found", "matched", "references", "s per volume")


def main() -> None:
    """Train what is missing, compare the methods and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/instances"), help="folder of data and runs")
    parser.add_argument("--minutes", type=float, default=4, help="time of each training (default: 4)")
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.depth is not None:
        print(json.dumps(_peak(options.folder, options.depth)))
        return
    dataset = _dataset(options.folder / "data")
    for name in MODELS:
        _train(options.folder, name, options.minutes)
    rows = [_row(options.folder, dataset, name, find) for name, find in _methods(options.folder).items()]
    steps = [str(read_metrics(options.folder / name / "metrics.jsonl")[-1]["step"]) for name in MODELS]
    text = (
        f"{HELD_OUT} phantoms of 56³ voxels with 30 touching ellipsoids each, after {options.minutes:g} minutes of training "
        f"({' and '.join(steps)} steps for volumes and for slices) on {TRAINED} others (`benchmarks/instances.py`). F1 and PQ are at an IoU above 0.5."
    )
    depths = [_memory_row(options.folder, depth) for depth in DEPTHS]
    memory = markdown(("voxels", "peak of memory besides image and result", "instances", "s"), depths)
    publish_section("instances", f"{text}\n\n{machine()}.\n\n{markdown(HEADER, rows)}\n\n{memory}")


def _dataset(folder: Path) -> Dataset:
    present = (folder / "dataset.json").is_file()
    dataset = (
        read_dataset(folder)
        if present
        else write_instance_phantoms(folder, TRAINED + HELD_OUT, shape=(SIDE,) * 3)
    )
    ids = dataset.ids
    split = {"train": ids[:TRAINED], "validation": ids[TRAINED:]}
    (folder / "splits.json").write_text(json.dumps([split]))
    return dataset.subset(ids[TRAINED:])


def _train(folder: Path, name: str, minutes: float) -> None:
    if (folder / name / "model").is_dir():
        return
    experiment = {
        "name": name,
        "data": {
            "path": str((folder / "data").resolve()),
            "splits": str((folder / "data" / "splits.json").resolve()),
        },
        "preprocess": {"spacing": [1, 1, 1], "normalize": "zscore", "crop_to_nonzero": False},
        **MODELS[name],
        "train": {
            "max_time": f"{minutes * 60:.0f}s",
            "batch_size": BATCHES[name],
            "validate_every": 100_000,
            "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01, "warmup_steps": 20},
        },
    }
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(experiment))
    subprocess.run(
        [sys.executable, "-m", "medseg", "train", str(config), "--run", str(folder / name)], check=True
    )


def _methods(folder: Path) -> dict[str, Callable[[Volume], Instances]]:
    volumes, slices = (load(folder / name, device="cpu") for name in MODELS)
    return {
        "offsets (`instance_unet_3d`)": volumes.instances,
        "watershed of distances (same network)": lambda image: _watershed(*_maps(volumes, image)),
        "connected components (same network)": lambda image: Instances.from_components(
            _maps(volumes, image)[0] > 0.5
        ),
        "slices linked (`instance_unet_2d`)": slices.instances,
    }


def _maps(predictor: Predictor, image: Volume) -> tuple[Floats, Floats]:
    """Return the probability of foreground and the distance from the border, `(X, Y, Z)`, of a whole volume at once."""
    model = predictor.model
    assert isinstance(model, InstanceUNet)
    prepared = predictor.prepare(image)
    network = centre_engine(predictor.engine, model, predictor.saved).network
    maps = network(prepared.image.slices(0, prepared.image.shape[1])[None]).float()[0].movedim(1, -1)
    return 1 - maps[: model.num_classes].softmax(dim=0)[0].numpy(), maps[model.num_classes].numpy()


def _watershed(foreground: Floats, distance: Floats) -> Instances:
    """Return the basins of the distances from the border, one for each of their maxima after smoothing."""
    inside, height = foreground > 0.5, ndimage.gaussian_filter(distance, 2)
    peaks = (ndimage.maximum_filter(height, 7) == height) & inside & (height > 0.2)
    seeds, _ = ndimage.label(peaks, np.ones((3, 3, 3)))
    ids: NDArray[np.int32] = watershed(-height, seeds, mask=inside)
    found = Instances.from_map(ids)
    scores = ndimage.mean(foreground, ids, np.unique(ids[ids > 0]))
    return Instances.from_crops(found.shape, found.starts, found.masks, found.classes, scores)


def _row(folder: Path, dataset: Dataset, name: str, find: Callable[[Volume], Instances]) -> list[str]:
    place, references = folder / "found" / name.split(" (")[0].replace(" ", "_"), folder / "references"
    assert dataset.labels is not None
    seconds = 0.0
    for case in dataset.cases:
        image = read_case_image(case)
        began = time.perf_counter()
        found = find(image)
        seconds += time.perf_counter() - began
        place.mkdir(parents=True, exist_ok=True)
        references.mkdir(exist_ok=True)
        write_instances(found, image, place / f"{case.id}.nii.gz", dataset.labels)
        write(read_case_instances(case), references / f"{case.id}.nii.gz")
    (pooled,) = evaluate_instances(place, references, dataset.labels).pooled().values()
    figures = [f"{getattr(pooled, key):.3f}" for key in ("f1", "ap50", "ap", "pq")]
    counts = [str(pooled.tp + pooled.fp), str(pooled.tp), str(pooled.tp + pooled.fn)]
    return [name, *figures, *counts, f"{seconds / len(dataset.cases):.1f}"]


def _memory_row(folder: Path, depth: int) -> list[str]:
    command = [sys.executable, __file__, "--folder", str(folder), "--depth", str(depth)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        f"{SIDE} × {SIDE} × {depth}",
        format_size(measured["peak"]),
        str(measured["instances"]),
        f"{measured['seconds']:.0f}",
    ]


def _peak(folder: Path, depth: int) -> dict[str, float]:
    """Return the memory of the prediction of a volume that repeats a phantom, without image and result."""
    block = instance_phantom((1, 0), shape=(SIDE,) * 3)[0].data
    predictor = load(folder / "volumes", device="cpu")
    predictor.instances(Volume(block, Grid.from_spacing((SIDE,) * 3)))  # loads what is loaded once
    data = np.tile(block, (1, 1, 1, depth // SIDE))
    image = Volume(data, Grid.from_spacing(data.shape[1:]))
    began = time.perf_counter()
    with PeakMemory() as memory:
        found = predictor.instances(image)
    result = sum(mask.nbytes for mask in found.masks) + data.size  # and the label map of the file
    return {
        "peak": memory.taken - result,
        "instances": len(found),
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
