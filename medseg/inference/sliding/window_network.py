"""A network that predicts windows: on its device, in its precision and memory format."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medseg.data.patches.first_stage_channels import append_one_hot
from medseg.inference.engines.engine_model import on_engine
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.models.volumetric.multiplane import as_volumetric
from medseg.runtime.compilation import prepare_compilation
from medseg.runtime.devices import (
    Precision,
    autocast,
    resolve_precision,
    safer_precision,
    set_tf32,
    to_fast_format,
)
from medseg.runtime.memory import PeakMemory, release_memory
from medseg.runtime.out_of_memory import is_out_of_memory

SLAB_FIRST = (2, 0, 1)
"""Order of the network's axes in the engine. The slab always moves along Z, whatever the axes of the file, so that sums of
logits are always formed in the same order."""


class WindowNetwork:
    """A network that maps windows `(n, c, Z, X, Y)` to logits `(n, k, Z, X, Y)`.

    In the second stage of a cascade, the last channel of a window holds the class indices of the first stage. It becomes
    one channel per label here, window by window, so that an image with that many channels is never in memory.

    Args:
        model: The network, 2D or 3D.
        saved: Settings of its model folder.
        device: Device to run on.

    Attributes:
        device: Device of the network.
        dtype: Number format of the network.
        safer: Number format for images whose logits are not finite in `dtype`; None if there is none.
        model: The network, on its device.
        volumetric: The network as a function of 3D windows; a 2D network is applied slice by slice.
        window: Voxels of a window along Z, X and Y.
        exclusive: Lock to hold while another thread reads an image, whose memory must not count as the network's.

    Raises:
        ConfigError: The device cannot compute in this precision.
    """

    def __init__(self, model: Model, saved: SavedModel, device: torch.device) -> None:
        self.device = device
        settings = saved.predict
        self._precision: Precision = "float32"
        if settings.engine == "torch" and settings.precision != "int8":
            self._precision = settings.precision
        self.dtype = resolve_precision(self._precision, device, model.spatial_dims)
        self.safer = safer_precision(self._precision, self.dtype)
        model = on_engine(model, settings.engine, settings.precision, device)
        self.model = to_fast_format(model.to(device).eval(), device, model.spatial_dims)
        volumetric = as_volumetric(model, saved.slice_view)
        self.volumetric = compile_for_windows(volumetric) if settings.compile else volumetric
        self.window = tuple(saved.window[axis] for axis in SLAB_FIRST)
        self._first_stage_labels = saved.num_first_stage_labels
        seen = saved.part_channels
        self._channels = (
            max(seen) + 1 if seen else len(saved.channel_names) + (saved.num_first_stage_labels > 0)
        )
        self._measured: dict[tuple[int, torch.dtype], tuple[int, float]] = {}
        self._largest_batch = 0
        self.exclusive = threading.Lock()
        if settings.engine != "torch":
            self(
                torch.zeros((1, self._channels, *self.window))
            )  # starts the engine, whose memory is not a window's

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the logits of a batch of windows, on the network's device."""
        wanted = len(batch)
        if self.device.type == "cuda":  # pragma: gpu
            batch = self._on_cuda(batch)
        with torch.inference_mode(), autocast(self.dtype, self.device):
            if self._first_stage_labels:
                batch = append_one_hot(batch, self._first_stage_labels)
            logits: Tensor = self.volumetric(batch.movedim(2, -1))
            return logits[:wanted].movedim(-1, 2)

    def _on_cuda(self, batch: Tensor) -> Tensor:  # pragma: gpu
        """Return a batch on the CUDA device, whose kernels are set up for it.

        cuDNN searches for the fastest kernels once for each batch size; a smaller last batch is filled with zeros instead.
        """
        set_tf32(self._precision == "tf32")
        torch.backends.cudnn.benchmark = True
        if batch.device.type == "cpu":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        self._largest_batch = max(self._largest_batch, len(batch))
        missing = self._largest_batch - len(batch)
        return torch.cat([batch, batch.new_zeros((missing, *batch.shape[1:]))]) if missing else batch

    @contextmanager
    def in_precision(self, dtype: torch.dtype) -> Iterator[None]:
        """Return a context in which the network runs in another number format.

        Args:
            dtype: The number format.
        """
        usual, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = usual

    def limit_batch_padding(self, batch_size: int) -> None:
        """Pad later batches to at most this size, because larger batches take too much memory.

        Args:
            batch_size: Number of windows.
        """
        self._largest_batch = min(self._largest_batch, batch_size)

    def measured_cost(self, batch_size: int) -> tuple[int, float]:
        """Measure the memory and time of a call: resident memory on the CPU, allocated memory on a CUDA device.

        The network is run only the first time for each batch size.

        Args:
            batch_size: Number of windows.

        Returns:
            Peak of the additional bytes, and seconds; infinite where the memory of the device does not suffice.
        """
        key = (batch_size, self.dtype)
        if key not in self._measured:
            try:
                self._measured[key] = self._measure(batch_size)
            except RuntimeError as error:
                if self.device.type == "cpu" or not is_out_of_memory(error):
                    raise
                self._measured[key] = sys.maxsize, math.inf
                self.limit_batch_padding(batch_size - 1)
            if self.device.type == "cuda":
                release_memory(self.device)
        return self._measured[key]

    def _measure(self, batch_size: int) -> tuple[int, float]:
        if self.device.type == "cuda":  # pragma: gpu
            self.limit_batch_padding(batch_size)
            batch = torch.zeros((batch_size, self._channels, *self.window), device=self.device)
            self(batch)  # cuDNN searches for kernels, with memory that later calls do not need
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before, began = torch.cuda.memory_allocated(self.device), time.perf_counter()
            self(batch)
            torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - began
            return torch.cuda.max_memory_allocated(self.device) - before, seconds
        batch = torch.zeros((batch_size, self._channels, *self.window))
        with self.exclusive, PeakMemory() as memory:
            self(batch)
        began = time.perf_counter()
        self(batch)
        return memory.taken, time.perf_counter() - began


def compile_for_windows(model: nn.Module) -> nn.Module:
    """Return the model compiled for one window size; the code is kept in the user's cache between runs.

    Args:
        model: The network.

    Returns:
        The compiled network; compilation itself takes place in the first call.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    prepare_compilation("compile")
    compiled_model: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled_model
