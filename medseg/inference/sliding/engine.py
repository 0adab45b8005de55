"""The engine: one image through the network and onto its file's grid, in bands that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.preprocessing.prepare import LabelTarget
from medseg.errors import ResourceError, warn_once
from medseg.inference.sliding.device_export import export_on_device
from medseg.inference.sliding.labelling import LabelRule, NotFiniteError
from medseg.inference.sliding.memory_plan import (
    FRACTION_OF_DEVICE,
    FRACTION_OF_FREE,
    MemoryBudget,
    MemoryPlan,
    plan_memory,
)
from medseg.inference.sliding.prepared_prediction import Band, LogitObserver, Note, PreparedPrediction
from medseg.inference.sliding.slab import SlabStorage
from medseg.inference.sliding.to_file_grid import export_labels
from medseg.inference.sliding.window_network import SLAB_FIRST, WindowNetwork
from medseg.inference.sliding.windows import SlidingWindow, window_slices
from medseg.io.probability_files import ProbabilityFile
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.runtime.memory import (
    format_size,
    free_device_memory,
    free_memory,
    process_memory,
    release_memory,
)
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason
from medseg.runtime.progress import Progress

Result = TypeVar("Result")
_AMPLE_FRACTION = (
    0.8  # of the free budget; a plan that needs less than this does not have to measure the network
)


@dataclass(frozen=True)
class SideOutputs:
    """The outputs of a prediction other than the label map.

    Attributes:
        probabilities: Open file to which the probabilities are written; None for none.
        uncertainty: Open file to which the entropy of the probabilities is written; None for none.
        observers: Objects that receive the logits on the network's grid, before they are interpolated.
    """

    probabilities: ProbabilityFile | None = None
    uncertainty: ProbabilityFile | None = None
    observers: tuple[LogitObserver, ...] = ()

    @property
    def files(self) -> tuple[ProbabilityFile, ...]:
        """The files that are written."""
        return tuple(file for file in (self.probabilities, self.uncertainty) if file is not None)


NO_SIDE_OUTPUTS = SideOutputs()


@dataclass(frozen=True)
class Engine:
    """The engine that runs prepared images through a network and writes their label maps within a memory limit.

    Attributes:
        network: The network.
        sliding: The windows and how their logits are combined; its batch size is the largest to use.
        rule: How logits become labels.
        max_memory: Maximum resident memory of the process in bytes; None for a share of what is free.
        max_device_memory: Maximum memory that torch allocates on the network's device in bytes; None for a share of what is
            free.
        postprocess_bytes_per_voxel: Bytes per voxel of the label map that post-processing needs, besides the label map,
            after the network is done.
    """

    network: WindowNetwork
    sliding: SlidingWindow
    rule: LabelRule
    max_memory: int | None = None
    max_device_memory: int | None = None
    postprocess_bytes_per_voxel: int = 0

    def run(
        self,
        prepared: PreparedPrediction,
        progress: Progress | None = None,
        side_outputs: SideOutputs = NO_SIDE_OUTPUTS,
        note: Note = warn_once,
    ) -> None:
        """Predict an image and fill its label map.

        Args:
            prepared: The image, and the label map to fill.
            progress: Called with (done, total, "window").
            side_outputs: Outputs other than the label map.
            note: Called with a sentence if the image had to be predicted in another way than planned.

        Raises:
            ConfigError: The allowed memory is too small.
            ResourceError: The memory did not suffice in any layout.
            ModelError: The network returned NaN or infinity.
        """
        if prepared.is_background:
            for observer in side_outputs.observers:
                observer.begin(prepared)
            return

        def run(plan: MemoryPlan) -> None:
            for observer in side_outputs.observers:
                observer.begin(prepared)
            self._run_plan(prepared, plan, progress, side_outputs)

        self.attempt(prepared, run, partial(self.plan, prepared, files=side_outputs.files), note)

    def attempt(
        self,
        prepared: PreparedPrediction,
        run: Callable[[MemoryPlan], Result],
        plan: Callable[[], MemoryPlan],
        note: Note = warn_once,
    ) -> Result:
        """Predict an image in the planned layout and precision, or in others if memory or precision do not suffice.

        Args:
            prepared: The image.
            run: Predicts it in one layout; called again with a smaller one, or in another precision.
            plan: Returns the layout to begin with.
            note: Called with a sentence if the image had to be predicted in another way than planned.

        Returns:
            What `run` returned.

        Raises:
            ConfigError: The allowed memory is too small.
            ResourceError: The memory did not suffice in any layout.
            ModelError: The network returned NaN or infinity.
        """
        try:
            return self._run_in_memory(prepared, run, plan(), note)
        except NotFiniteError:
            if self.network.safer is None:
                raise
        unsafe, safer = (
            str(dtype).removeprefix("torch.") for dtype in (self.network.dtype, self.network.safer)
        )
        note(f"{prepared.where}: logits were not finite in {unsafe}; predicted in {safer} instead")
        with self.network.in_precision(self.network.safer):
            return self._run_in_memory(prepared, run, plan(), note)

    def _run_in_memory(
        self,
        prepared: PreparedPrediction,
        run: Callable[[MemoryPlan], Result],
        plan: MemoryPlan,
        note: Note,
    ) -> Result:
        """Run an image in its planned layout, and in smaller ones if memory does not suffice."""
        while True:
            try:
                return run(plan)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = out_of_memory_reason(error)
            # Outside of the handler, whose error holds the tensors of the failed try.
            release_memory(self.network.device)
            smaller = plan.smaller()
            if smaller is None:
                raise ResourceError(self._out_of_memory(prepared, plan, reason))
            plan = smaller
            where = "sums on the host" if plan.device != self.network.device else "on the device"
            self.network.limit_batch_padding(plan.batch_size)
            note(
                f"{prepared.where}: memory did not suffice; predicted with batches of {plan.batch_size}, {where}"
            )

    def _out_of_memory(self, prepared: PreparedPrediction, plan: MemoryPlan, reason: str) -> str:
        """Return the message for an image whose prediction fits in no layout."""
        device, remedy = self.network.device, "Give a smaller --max-memory, or use a machine with more memory"
        needed, free = plan.peak - process_memory(), free_memory()
        if device.type == "cuda":
            needed, free = plan.device_peak, free_device_memory(device)
            remedy = "Close other programs on the device, or predict with --device cpu"
        return (
            f"{prepared.where}: found too little memory on {device} ({reason}): about {format_size(max(needed, 0))} more "
            f"needed, {format_size(free)} free. {remedy}."
        )

    def _run_plan(
        self,
        prepared: PreparedPrediction,
        plan: MemoryPlan,
        progress: Progress | None,
        side_outputs: SideOutputs,
    ) -> None:
        """Run an image in one layout, band by band."""
        sliding, bands = self.windows_for(prepared, plan), prepared.bands(plan.bands, self.sliding)
        counts = [len(sliding.layout(prepared.image.shape[1:], band.columns).boxes) for band in bands]
        with keep_freed_memory(plan.keeps_memory):
            for number, band in enumerate(bands):
                progress = _offset_progress(progress, sum(counts[:number]), sum(counts))
                self._run_band(prepared, sliding, band, progress, side_outputs)

    def _run_band(
        self,
        prepared: PreparedPrediction,
        sliding: SlidingWindow,
        band: Band,
        progress: Progress | None,
        side_outputs: SideOutputs,
    ) -> None:
        blocks = window_slices(prepared.image, self.network, sliding, columns=band.columns, progress=progress)
        if side_outputs.observers and band.own.start < band.own.stop:
            blocks = _observed(blocks, band, side_outputs.observers)
        export = export_labels if sliding.storage.device.type == "cpu" else export_on_device
        export(
            blocks,
            (prepared.axes[0], band.axis, prepared.axes[2]),
            self.rule,
            prepared.target.view.transpose(SLAB_FIRST)[:, band.targets],
            partial(_write_slice, side_outputs, self.rule, prepared.target, band.targets)
            if side_outputs.files
            else None,
        )

    def windows_for(self, prepared: PreparedPrediction, plan: MemoryPlan) -> SlidingWindow:
        """Return the windows for an image under its memory plan.

        Args:
            prepared: The image.
            plan: Its memory plan.

        Returns:
            The windows with the plan's batch size and storage, and with the test for empty windows of this image.
        """
        return replace(
            self.sliding,
            batch_size=plan.batch_size,
            storage=SlabStorage(plan.sums, plan.device, read_ahead=plan.device.type == "cuda"),
            empty_up_to=prepared.empty_up_to,
        )

    def plan(
        self,
        prepared: PreparedPrediction,
        *,
        files: Sequence[ProbabilityFile] = (),
        measure: bool = False,
        whole_planes: bool = False,
        more: int = 0,
    ) -> MemoryPlan:
        """Choose the layout for an image.

        Without a budget, the network is measured only if memory might become scarce, because that runs it once.

        Args:
            prepared: The image; not changed.
            files: Files that will be filled with probabilities or their entropy.
            measure: Measure the network in any case.
            whole_planes: Do not divide the image into bands, because the results of whole slices are needed.
            more: Bytes that are needed besides, in any layout.

        Returns:
            Number of bands, batch size, and number format and device of the sums.

        Raises:
            ConfigError: No layout fits; the message names the smallest sufficient budget.
        """
        labels = prepared.target.volume.data
        used = process_memory()
        held = used + labels.nbytes + more
        later = held + self.postprocess_bytes_per_voxel * labels.size
        held += sum(file.resident_bytes(prepared.target.file_axis(SLAB_FIRST[0])) for file in files)
        allowed = self.max_memory or used + int(FRACTION_OF_FREE * free_memory())
        budget = MemoryBudget(allowed, held, later, self._device_budget())
        keeps = False
        if self.max_memory is None and budget.device is None:
            unmeasured = plan_memory(
                prepared, self.sliding, budget, self.network, measure=False, whole_planes=whole_planes
            )
            ample = unmeasured.peak - held < _AMPLE_FRACTION * (allowed - held)
            keeps = ample
            if ample and not measure:
                return replace(unmeasured, keeps_memory=keeps)
        with keep_freed_memory(keeps):
            measured = plan_memory(prepared, self.sliding, budget, self.network, whole_planes=whole_planes)
        return replace(measured, keeps_memory=keeps)

    def _device_budget(self) -> int | None:
        """Return the bytes that may still be allocated on the network's device; None on the CPU."""
        device = self.network.device
        if device.type != "cuda":
            return None
        free = free_device_memory(device)
        if self.max_device_memory is None:
            return int(FRACTION_OF_DEVICE * free)
        return min(free, self.max_device_memory - torch.cuda.memory_allocated(device))


def _observed(blocks: Iterator[Tensor], band: Band, observers: Sequence[LogitObserver]) -> Iterator[Tensor]:
    """Yield blocks of logits `(slices, columns, *rest, k)` of a band after showing the observers its own columns."""
    first, own = 0, slice(band.own.start - band.columns.start, band.own.stop - band.columns.start)
    for block in blocks:
        for observer in observers:
            observer.see(block[:, own], first, band.own)
        first += len(block)
        yield block


def _write_slice(
    side_outputs: SideOutputs,
    rule: LabelRule,
    target: LabelTarget,
    columns: slice,
    number: int,
    values: NDArray[np.float32],
) -> None:
    """Write the probabilities `(columns, B, k)` of one target slice, and their entropy, into the files."""
    if side_outputs.probabilities is not None:
        _view(side_outputs.probabilities, target)[:, number, columns] = side_outputs.probabilities.encoded(
            np.moveaxis(values, -1, 0)
        )
    if side_outputs.uncertainty is not None:
        entropy = rule.entropy(torch.from_numpy(values)).amax(-1).clamp(0, 1).numpy()
        _view(side_outputs.uncertainty, target)[0, number, columns] = side_outputs.uncertainty.encoded(
            entropy
        )


def _view(file: ProbabilityFile, target: LabelTarget) -> NDArray[np.uint16]:
    """Return the encoded values of a file `(K, Z, X, Y)` for writing, with the axes of the engine."""
    array = file.array(target.file_axis(SLAB_FIRST[0]))
    return target.view_of(array).transpose(0, *(axis + 1 for axis in SLAB_FIRST))


def _offset_progress(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return a callback that reports the progress of one band as progress of all bands."""
    if progress is None:
        return None
    return lambda done, _, what: progress(before + done, total, what)
