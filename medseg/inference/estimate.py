"""Estimate the time and memory of a prediction without running it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg.data.datasets.cases import Case
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.inference.preparation.image_source import Source
from medseg.inference.sliding.labelling import LabelRule
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.inference.sliding.windows import SlidingWindow, window_slices, windows_to_predict
from medseg.runtime.glibc_memory import keep_freed_memory

_BATCHES_TIMED = 3


@dataclass(frozen=True)
class Estimate:
    """The estimate for one image and one model.

    Attributes:
        windows: Number of windows to predict.
        empty: Number of windows that are skipped because they are empty.
        seconds: Seconds for reading, network and export together.
        memory: Expected peak of the process's resident memory in bytes.
        bands: Number of bands that the image is predicted in.
        shape: Voxels on the network's grid.
        device_memory: Expected peak of the memory allocated on a CUDA device in bytes; 0 on a processor.
    """

    windows: int
    empty: int
    seconds: float
    memory: int
    bands: int
    shape: tuple[int, ...]
    device_memory: int = 0


def estimate_image(predictor: Predictor, source: Source) -> Estimate:
    """Estimate what predicting an image takes.

    The image is read and prepared; a few batches of windows and a slice of export are timed. In a cascade, windows, bands
    and voxels are those of the second stage; time and memory are those of both. A model that crops images around labels of a
    first stage runs that stage, and the numbers are those of the part that is left.

    Args:
        predictor: The model.
        source: The image, as for a call of the predictor.

    Returns:
        The time in seconds, the memory in bytes, and the numbers of windows, bands and voxels.

    Raises:
        DataError: The image cannot be read or does not fit the model.
        ConfigError: The allowed memory is too small for it.
    """
    began = time.perf_counter()
    prepared = predictor.prepare(source)
    if predictor.saved.crop_around is not None:  # how much is left to predict is known only then
        prepared = prepared.with_first_stage()
    reading = time.perf_counter() - began
    engine = predictor.engine
    plan = engine.plan(prepared, measure=True)
    sliding = engine.windows_for(prepared, plan)
    bands = prepared.bands(plan.bands, sliding)
    counts = [len(sliding.layout(prepared.image.shape[1:], band.columns).boxes) for band in bands]
    wanted = [windows_to_predict(prepared.image, sliding, band.columns) for band in bands]
    batches = sum(-(-count // sliding.batch_size) for count in wanted)
    with keep_freed_memory(plan.keeps_memory):
        seconds = reading + batches * _batch_seconds(predictor, prepared, sliding, bands[0].columns)
    seconds += _export_seconds(prepared.axes, engine.rule)
    shape = tuple(prepared.image.shape[1:])
    memory, device_memory = plan.peak, plan.device_peak
    if prepared.run_first_stage is not None and predictor.first_stage is not None:
        before = estimate_image(predictor.first_stage, source)
        seconds += before.seconds
        # The label map of the first stage, which is in memory while the second one runs.
        held = (
            prepared.target.volume.data.size
            * predictor.first_stage.labels.to_classes(np.zeros(1, int)).itemsize
        )
        memory = max(before.memory, memory + held)
        device_memory = max(before.device_memory, device_memory)
    return Estimate(
        sum(wanted),
        sum(counts) - sum(wanted),
        seconds,
        memory,
        plan.bands,
        (*shape[1:], shape[0]),
        device_memory,
    )


@dataclass(frozen=True)
class CaseEstimate:
    """What predicting one case takes: time, memory and windows.

    Attributes:
        case: The case.
        parts: One estimate per predictor; empty if there is an `error`. The two stages of a cascade are one predictor.
        error: Why the case cannot be estimated; None if it can.
    """

    case: Case
    parts: tuple[Estimate, ...] = ()
    error: MedsegError | None = None

    @property
    def seconds(self) -> float:
        """The seconds of all models, which run one after the other."""
        return sum(part.seconds for part in self.parts)

    @property
    def memory(self) -> int:
        """The peak resident memory of the process in bytes."""
        return max((part.memory for part in self.parts), default=0)

    @property
    def device_memory(self) -> int:
        """The peak memory allocated on a CUDA device in bytes; 0 on a processor."""
        return max((part.device_memory for part in self.parts), default=0)


def estimate_cases(predictors: Sequence[Predictor], cases: Iterable[Case]) -> Iterator[CaseEstimate]:
    """Estimate what predicting each case takes.

    Args:
        predictors: One predictor, or those of an ensemble.
        cases: The cases.

    Yields:
        One estimate per case. A case that fails does not stop the others.
    """
    for case in cases:
        try:
            parts = tuple(estimate_image(predictor, case) for predictor in predictors)
        except MedsegError as error:
            yield CaseEstimate(case, error=error)
        else:
            yield CaseEstimate(case, parts)


class _Enough(Exception):
    """Enough batches were timed."""


def _batch_seconds(
    predictor: Predictor, prepared: PreparedPrediction, sliding: SlidingWindow, columns: slice
) -> float:
    """Return the median of the seconds between the first few batches."""
    stamps = [time.perf_counter()]

    def stamp(done: int, total: int, what: str) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) > _BATCHES_TIMED:
            raise _Enough

    try:
        blocks = window_slices(prepared.image, predictor.network, sliding, columns=columns, progress=stamp)
        for _ in blocks:
            pass
    except _Enough:
        pass
    return float(np.median(np.diff(stamps)))


def _export_seconds(axes: Sequence[LinearWeights], rule: LabelRule) -> float:
    """Return the seconds for resampling logits onto the target, extrapolated from the first slices.

    The logits are those of background, since in most images few voxels lie between classes.
    """
    along = max(1, int((axes[0].upper <= 1).sum()))  # a thick first slice may begin after the second source
    part, sources = axes[0].part(slice(0, along))
    sizes = [int(axis.upper.max()) + 1 for axis in axes[1:]]
    block = torch.tensor(rule.background_logits).repeat(sources.stop - sources.start, *sizes, 1)
    out = np.empty((along, *(len(axis.lower) for axis in axes[1:])), rule.values.dtype)
    began = time.perf_counter()
    export_labels([block], (part, *axes[1:]), rule, out)
    return (time.perf_counter() - began) * len(axes[0].lower) / along
