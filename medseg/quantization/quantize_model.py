"""Add an 8-bit form of its network to a model folder, if it keeps the Dice of held-out cases."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_label
from medseg.errors import ModelError
from medseg.evaluation.label_maps.metrics import LabelMetrics, compare_label_maps
from medseg.evaluation.label_maps.table import Table
from medseg.inference.predictor import Predictor, load
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import INT8, find_model_folder
from medseg.quantization.calibration_windows import calibration_windows
from medseg.quantization.int8_graph import int8_graph, save_graph
from medseg.runtime.progress import Progress
from medseg.storage.atomic import replacing_folder, write_text
from medseg.storage.manifest import write_manifest
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LARGEST_LOSS = 0.002
"""Loss of mean Dice up to which a network with 8-bit integers is stored without being asked for."""


@dataclass(frozen=True)
class Int8Figures:
    """What was measured of a network with 8-bit integers.

    Attributes:
        cases: Number of cases that were measured.
        windows: Number of windows that the ranges were calibrated on.
        float_ends: Whether the first and the last convolution stay in float32.
        dice: Mean Dice by label in float32.
        dice_int8: Mean Dice by label with 8-bit integers.
        seconds: CPU seconds of the predictions in float32.
        seconds_int8: CPU seconds of the predictions with 8-bit integers.
    """

    cases: int
    windows: int
    float_ends: bool
    dice: Mapping[str, float]
    dice_int8: Mapping[str, float]
    seconds: float
    seconds_int8: float

    @property
    def loss(self) -> float:
        """The loss of the mean Dice over labels that occur; negative if it grew."""
        return _mean(self.dice) - _mean(self.dice_int8)

    @property
    def speedup(self) -> float:
        """The number of times that float32 takes more CPU seconds."""
        return self.seconds / self.seconds_int8


@dataclass(frozen=True)
class _Measured:
    """Mean Dice by label, and CPU seconds of the predictions."""

    dice: Mapping[str, float]
    seconds: float


def quantize_model(
    model: str | Path,
    calibrate: Sequence[Case],
    measure: Sequence[Case],
    *,
    windows: int = 300,
    largest_loss: float = LARGEST_LOSS,
    progress: Progress | None = None,
) -> Int8Figures:
    """Add an 8-bit form of its network to a model folder.

    The network is quantized twice, completely and with the first and last convolution in float32. The first form is kept
    unless the second one has a higher mean Dice by more than a tenth of the loss that is allowed.

    Args:
        model: Model folder, or a finished run. Its other files, and with them the identity of the model, do not change.
        calibrate: Cases from which windows are taken to find the ranges of integers.
        measure: Cases with references, on which Dice is measured in float32 and with 8-bit integers.
        windows: Number of windows to calibrate on.
        largest_loss: Largest loss of mean Dice at which the network is stored.
        progress: Called with (done, total, case id) after each prediction.

    Returns:
        The figures, which are also in ``int8/measured.json`` of the model folder.

    Raises:
        ModelError: The loss is larger, packages are missing, the network is a cascade or cannot be expressed for OpenVINO.
        DataError: A case cannot be read.
    """
    folder = find_model_folder(model)
    predictor = load(folder, device="cpu", engine="torch", precision="float32")
    if predictor.first_stage is not None:
        raise ModelError(
            f"{folder}: found a cascade, expected a model of one stage. Predict with precision=float32."
        )
    if predictor.saved.parts:
        raise ModelError(
            f"{folder}: found a model of {len(predictor.saved.parts)} parts, expected one network. Predict with precision=float32."
        )
    sample = calibration_windows(predictor, calibrate, windows, progress)
    before = _measured(predictor, measure, progress)
    with replacing_folder(folder / INT8) as temporary:
        forms: dict[Path, Int8Figures] = {}
        for name, float_ends in (("all", False), ("ends", True)):
            form = temporary / name
            form.mkdir()
            save_graph(int8_graph(predictor.model, sample, float_ends=float_ends), form)
            after = _measured(_with_int8(predictor, form), measure, progress)
            forms[form] = Int8Figures(
                len(measure), len(sample), float_ends, before.dice, after.dice, before.seconds, after.seconds
            )
        every, ends = forms
        chosen = ends if not forms[every].loss <= forms[ends].loss + largest_loss / 10 else every
        figures = forms[chosen]
        if not figures.loss <= largest_loss:  # a loss that is not a number is refused, too
            raise ModelError(
                f"{folder}: loss of mean Dice with 8-bit integers: found {figures.loss:.4f} on {len(measure)} cases "
                f"({_mean(figures.dice):.4f} to {_mean(figures.dice_int8):.4f}), expected at most {largest_loss:g}. Nothing was "
                "stored; give more cases to calibrate on, or allow the loss with --max-loss."
            )
        for file in chosen.iterdir():
            file.rename(temporary / file.name)
        for form in forms:
            shutil.rmtree(form)
        record = {"format": 1, "loss": figures.loss, **asdict(figures)}
        write_text(temporary / "measured.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        write_manifest(temporary)
    return figures


def _with_int8(predictor: Predictor, form: Path) -> Predictor:
    """Return a predictor that runs an 8-bit form of its network."""
    write_manifest(form)
    predictor.model.int8_folder = form
    return predictor.with_settings(engine="openvino", precision="int8")


def _measured(predictor: Predictor, cases: Sequence[Case], progress: Progress | None) -> _Measured:
    """Predict cases and return their mean Dice by label, and the CPU seconds of the predictions."""
    rows, seconds = [], 0.0
    for number, case in enumerate(cases, start=1):
        prepared = predictor.prepare(case)
        began = time.process_time()
        labels = predictor.run(prepared)
        seconds += time.process_time() - began
        reference = _reference(case, predictor.labels, labels.grid)
        rows += compare_label_maps(
            labels, reference, predictor.labels, case=case.id, annotated=case.annotated
        )
        if progress is not None:
            progress(number, len(cases), case.id)
    return _Measured(_mean_dice(rows), seconds)


def _mean_dice(rows: Sequence[LabelMetrics]) -> dict[str, float]:
    """Return the mean Dice of each label that occurs."""
    means = {name: values["dice"] for name, values in Table(tuple(rows)).mean().items()}
    return {name: dice for name, dice in means.items() if not math.isnan(dice)}


def _reference(case: Case, labels: Labels, grid: Grid) -> Volume:
    """Return the reference label map of a case, with the labels' values."""
    classes = read_case_label(case, labels, grid)
    return classes.with_data(labels.to_values(classes.data))


def _mean(dice: Mapping[str, float]) -> float:
    return sum(dice.values()) / len(dice) if dice else math.nan
