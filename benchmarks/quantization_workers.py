"""The functions that `quantization.py` measures: each runs in its own process and returns its results.

Seconds are those of the measured part alone; the CPU seconds and the peak of resident memory of the whole process are added by
`worker_process.answer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_label
from medseg.evaluation.label_maps.metrics import compare_label_maps
from medseg.evaluation.label_maps.table import Table
from medseg.experiment.run_folder import RunFolder
from medseg.inference.predictor import Predictor
from medseg.model_folder.folder import INT8, load_model, save_model
from medseg.quantization.calibration_windows import calibration_windows
from medseg.quantization.choose_cases import cases_of_run, spread
from medseg.quantization.int8_graph import int8_graph, save_graph
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.storage.manifest import write_manifest

Figures = dict[str, Any]


class _Clock:
    """The CPU seconds of all threads of this process, and the wall seconds, of the parts that it encloses."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def predict(run: str, output: str, engine: str, precision: str, max_memory: str, most_cases: int) -> Figures:
    """Predict held-out cases of a run from file to label map with one engine, and write the label maps.

    Args:
        run: Finished run.
        output: Folder for the label maps.
        engine: ``predict.engine``.
        precision: ``predict.precision``.
        max_memory: Memory limit, the same for all engines.
        most_cases: Maximum number of cases.

    Returns:
        CPU and wall seconds of the start of the engine and of all predictions, numbers of cases and windows, Dice by label.
    """
    start, predictions, windows, rows = _Clock(), _Clock(), 0, []
    with start.running():
        predictor = medseg.load(run, device="cpu", max_memory=max_memory, engine=engine, precision=precision)
    for case in _held_out(run, most_cases):
        totals = [0]

        def progress(done: int, total: int | None, what: str, totals: list[int] = totals) -> None:
            totals[0] = total or 0

        with predictions.running():
            found = predictor(case, progress=progress)
        windows += totals[0]
        medseg.write(found, Path(output) / f"{case.id}.nii.gz")
        classes = read_case_label(case, predictor.labels, found.grid)
        reference = classes.with_data(predictor.labels.to_values(classes.data))
        rows += compare_label_maps(found, reference, predictor.labels, case=case.id)
    return {
        "threads": torch.get_num_threads(),
        "start_cpu": sum(start.cpu),
        "prediction_cpu": sum(predictions.cpu),
        "prediction_wall": sum(predictions.wall),
        "cases": len(predictions.cpu),
        "windows": windows,
        "dice": {name: values["dice"] for name, values in Table(tuple(rows)).mean().items()},
    }


def window(model: str, engine: str, precision: str, calls: int) -> Figures:
    """Run single windows through a network with one engine.

    Args:
        model: Model folder.
        engine: ``predict.engine``.
        precision: ``predict.precision``.
        calls: Number of windows, after a first one that is not measured.

    Returns:
        CPU and wall seconds of the fastest window, and its size.
    """
    network = medseg.load(model, device="cpu", engine=engine, precision=precision).network
    channels = network.model.in_channels
    image = torch.randn((1, channels, *network.window), generator=torch.Generator().manual_seed(0))
    clock = _Clock()
    with keep_freed_memory():  # as in a prediction with ample memory
        network(image)
        for _ in range(calls):
            with clock.running():
                network(image)
    return {"window": list(network.window), "window_cpu": min(clock.cpu), "window_wall": min(clock.wall)}


def enlarge(run: str, output: str, size: int, windows: int, float_ends: bool) -> Figures:
    """Write the network of a run to a model folder with larger windows, in float32 and with 8-bit integers, to measure its speed.

    Args:
        run: Finished run.
        output: Model folder to write.
        size: Voxels of a window along each axis.
        windows: Windows to calibrate on.
        float_ends: Whether the first and the last convolution stay in float32.

    Returns:
        The number of windows that the ranges were calibrated on.
    """
    network, saved, labels = load_model(RunFolder(Path(run)).model)
    larger = saved.replace(window=(size, size, size))
    save_model(output, network, larger, labels)
    predictor = Predictor(network, larger, labels, device="cpu")
    cases = spread(cases_of_run(RunFolder(Path(run))).calibrate, windows)
    images = calibration_windows(predictor, cases, windows)
    folder = Path(output) / INT8
    folder.mkdir()
    save_graph(int8_graph(predictor.model, images, float_ends=float_ends), folder)
    write_manifest(folder)
    return {"windows": len(images)}


def agreement(one: Path, other: Path) -> tuple[float, float]:
    """Compare the label maps of two folders.

    Args:
        one: Folder of label maps.
        other: Folder of label maps with the same names.

    Returns:
        The share of equal voxels of all cases together, and of the worst case.
    """
    equal = [
        medseg.read_labels(path).data == medseg.read_labels(other / path.name).data
        for path in sorted(one.glob("*.nii.gz"))
    ]
    every = np.concatenate([case.ravel() for case in equal])
    return float(every.mean()), float(min(case.mean() for case in equal))


def _held_out(run: str, most: int) -> tuple[Case, ...]:
    return spread(cases_of_run(RunFolder(Path(run))).measure, most)
