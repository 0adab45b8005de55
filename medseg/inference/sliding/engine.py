"""One image through the network and onto its file's grid, in bands that fit the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.preprocessing.prepare import LabelTarget
from medseg.inference.sliding.labelling import LabelRule
from medseg.inference.sliding.memory_plan import (
    FRACTION_OF_FREE,
    MemoryPlan,
    plan_memory,
)
from medseg.inference.sliding.slab import Slices
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.inference.sliding.window_network import SLAB_FIRST, WindowNetwork
from medseg.inference.sliding.windows import SlidingWindow, window_slices
from medseg.io.probability_files import ProbabilityFile
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.runtime.memory import free_memory, used_memory
from medseg.runtime.progress import Progress

_AMPLE_BYTES = 0.8  # of the budget: below it the network need not be measured


@dataclass(frozen=True)
class PreparedPrediction:
    """An image that is ready for the network, and the label map that it will fill.

    Attributes:
        image: prepared, slab axis first: `(c, Z, X, Y)` float32.
        target: the label map.
        axes: between which network voxels the target's lie, slab axis first.
        empty: tells which windows hold nothing and need not be predicted; None to predict all.
        earlier: runs the earlier stage of a cascade, telling progress, and returns the image with its label map as the
            last channel, where `image` holds zeros; None where nothing is left to do.
    """

    image: Slices
    target: LabelTarget
    axes: tuple[LinearWeights, ...]
    empty: Callable[[Tensor], bool] | None = None
    run_first_stage: Callable[[Progress | None], Slices] | None = None

    def with_first_stage(self, progress: Progress | None = None) -> PreparedPrediction:
        """The job after its earlier stage."""
        if self.run_first_stage is None:
            return self
        return replace(self, image=self.run_first_stage(progress), run_first_stage=None)

    def bands(self, count: int, sliding: SlidingWindow) -> list[Band]:
        """The target cut along the second axis into so many parts of about one size, where windows meet if they can."""
        axis = self.axes[1]
        voxels = len(axis.lower)
        seams = np.searchsorted(axis.lower.numpy(), sliding.window_edges(self.image.shape[2]))
        edges = [
            0,
            *(_nearest_edge(voxels * i // count, seams, voxels // (2 * count)) for i in range(1, count)),
            voxels,
        ]
        pieces = [slice(a, b) for a, b in pairwise(edges) if a < b]
        return [Band(piece, *axis.part(piece)) for piece in pieces]


def _nearest_edge(wanted: int, seams: NDArray[np.int64], reach: int) -> int:
    """The seam next to a voxel, or the voxel where none is within reach."""
    if not len(seams):
        return wanted
    nearest = int(seams[np.abs(seams - wanted).argmin()])
    return nearest if abs(nearest - wanted) <= reach else wanted


@dataclass(frozen=True)
class Band:
    """A part of the target along the second axis.

    Attributes:
        targets: voxels of the target. columns: network voxels that they need. axis: how they lie between these.
    """

    targets: slice
    axis: LinearWeights
    columns: slice


@dataclass(frozen=True)
class Engine:
    """Runs jobs.

    Attributes:
        network: what windows are given to.
        sliding: windows and how they are put together; its batch is the largest.
        rule: how logits become labels.
        max_memory: resident bytes of the process; None for a share of what is free.
        afterwards: bytes a voxel of the label map that is still to come, beside it, once the network is done.
    """

    network: WindowNetwork
    sliding: SlidingWindow
    rule: LabelRule
    max_memory: int | None = None
    postprocess_bytes_per_voxel: int = 0

    def run(
        self,
        prepared: PreparedPrediction,
        progress: Progress | None = None,
        probabilities: ProbabilityFile | None = None,
    ) -> None:
        """Fill the job's label map.

        Args:
            prepared: its target receives the labels.
            progress: called with (done, total, "window").
            probabilities: receives the probabilities, if given.

        Raises:
            ConfigError: the memory allowed is too small.
            ModelError: logits that are not finite.
        """
        plan = self.plan(prepared, probabilities=probabilities)
        sliding, bands = self.windows_for(prepared, plan), prepared.bands(plan.bands, self.sliding)
        counts = [len(sliding.layout(prepared.image.shape[1:], band.columns).boxes) for band in bands]
        with keep_freed_memory(plan.keeps_memory):
            for number, band in enumerate(bands):
                of_all = _offset(progress, sum(counts[:number]), sum(counts))
                self._run_band(prepared, sliding, band, of_all, probabilities)

    def _run_band(
        self,
        prepared: PreparedPrediction,
        sliding: SlidingWindow,
        band: Band,
        progress: Progress | None,
        probabilities: ProbabilityFile | None,
    ) -> None:
        blocks = window_slices(prepared.image, self.network, sliding, columns=band.columns, progress=progress)
        export_labels(
            blocks,
            (prepared.axes[0], band.axis, prepared.axes[2]),
            self.rule,
            prepared.target.view.transpose(SLAB_FIRST)[:, band.targets],
            None
            if probabilities is None
            else partial(_write_probabilities, probabilities, prepared.target, band.targets),
        )

    def windows_for(self, prepared: PreparedPrediction, plan: MemoryPlan) -> SlidingWindow:
        """The windows of a job under its plan."""
        return replace(
            self.sliding,
            batch_size=plan.batch_size,
            sums=plan.sums,
            device=plan.device,
            is_empty=prepared.empty,
        )

    def plan(
        self,
        prepared: PreparedPrediction,
        *,
        probabilities: ProbabilityFile | None = None,
        measure: bool = False,
    ) -> MemoryPlan:
        """How the job is laid out.

        Args:
            prepared: not changed.
            probabilities: receives the probabilities, if wanted.
            measure: run the network once to see what it takes, also where memory is plenty and no budget was given.

        Raises:
            ConfigError: nothing fits the budget; the smallest that would do is told.
        """
        labels = prepared.target.volume.data
        held = used_memory() + labels.nbytes
        later = held + self.postprocess_bytes_per_voxel * labels.size
        if probabilities is not None:
            held += probabilities.resident_bytes(prepared.target.file_axis(SLAB_FIRST[0]))
        budget = self.max_memory or used_memory() + int(FRACTION_OF_FREE * free_memory())

        def plan(within: int, network: Callable[[int], int]) -> MemoryPlan:
            return plan_memory(
                prepared.image.shape,
                self.sliding,
                budget=within,
                held_bytes=held,
                postprocess_bytes=later,
                network=network,
                reduced=self.network.dtype != torch.float32,
                columns=lambda count: [band.columns for band in prepared.bands(count, self.sliding)],
                gpu=self.network.device if self.network.device.type == "cuda" else None,
            )

        easy = plan(budget, lambda batch: 0) if self.max_memory is None else None
        roomy = easy is not None and easy.peak - held < _AMPLE_BYTES * (budget - held)
        keeps = roomy and self.network.device.type == "cpu"
        if easy is not None and roomy and not measure:
            return replace(easy, keeps_memory=keeps)
        with keep_freed_memory(keeps):
            found = plan(budget, lambda batch: self.network.measured_cost(batch)[0])
        return replace(found, keeps_memory=keeps)


def _write_probabilities(
    probabilities: ProbabilityFile,
    target: LabelTarget,
    columns: slice,
    number: int,
    values: NDArray[np.float32],
) -> None:
    """Write the probabilities `(columns, B, k)` of one target slice to their place in the file."""
    view = target.view_of(probabilities.array(target.file_axis(SLAB_FIRST[0]))).transpose(
        0, *(axis + 1 for axis in SLAB_FIRST)
    )
    view[:, number, columns] = probabilities.encoded(np.moveaxis(values, -1, 0))


def _offset(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return a callback that reports the progress of one band as progress of all bands."""
    if progress is None:
        return None
    return lambda done, _, what: progress(before + done, total, what)
