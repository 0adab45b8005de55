"""What a prediction will take, before it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg.inference.predictor import Predictor, Source
from medseg.inference.sliding.engine import PreparedPrediction
from medseg.inference.sliding.labelling import LabelRule
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.inference.sliding.windows import SlidingWindow, window_slices, windows_to_predict
from medseg.runtime.glibc_memory import keep_freed_memory

_BATCHES_TIMED = 3


@dataclass(frozen=True)
class Estimate:
    """Of one image.

    Attributes:
        windows: to predict; empty: left out because they hold nothing.
        seconds: reading, network and export together.
        memory: resident bytes of the process at most.
        bands: parts that the image is predicted in.
        shape: voxels on the network's grid.
    """

    windows: int
    empty: int
    seconds: float
    memory: int
    bands: int
    shape: tuple[int, ...]


def estimate(predictor: Predictor, source: Source) -> Estimate:
    """Read and prepare the image, lay it out, and time one batch of windows and one slice of export.

    Of a cascade, windows, parts and voxels are those of the last stage; time and memory those of all.

    Raises:
        DataError: the image cannot be read or does not fit the model.
        ConfigError: the memory allowed is too small for it.
    """
    began = time.perf_counter()
    prepared = predictor.prepare(source)
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
    memory = plan.peak
    if prepared.run_first_stage is not None and predictor.first_stage is not None:
        before = estimate(predictor.first_stage, source)
        seconds += before.seconds
        # The label map of the earlier stage, which is there when the later one runs.
        held = (
            prepared.target.volume.data.size
            * predictor.first_stage.labels.to_classes(np.zeros(1, int)).itemsize
        )
        memory = max(before.memory, memory + held)
    return Estimate(
        sum(wanted), sum(counts) - sum(wanted), seconds, memory, plan.bands, (*shape[1:], shape[0])
    )


class _Enough(Exception):
    """Batches were timed."""


def _batch_seconds(
    predictor: Predictor, prepared: PreparedPrediction, sliding: SlidingWindow, columns: slice
) -> float:
    """Seconds from one batch to the next, of the first few."""
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
    """Seconds to bring logits to the target, from the slices between the first two; few voxels lie between classes."""
    along = int((axes[0].upper <= 1).sum())
    sizes = [int(axis.upper.max()) + 1 for axis in axes]
    block = torch.tensor(rule.background_logits).repeat(min(2, sizes[0]), *sizes[1:], 1)
    part, _ = axes[0].part(slice(0, along))
    out = np.empty((along, *(len(axis.lower) for axis in axes[1:])), rule.values.dtype)
    began = time.perf_counter()
    export_labels([block], (part, *axes[1:]), rule, out)
    return (time.perf_counter() - began) * len(axes[0].lower) / along
