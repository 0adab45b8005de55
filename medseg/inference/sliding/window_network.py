"""A network that predicts windows: on its device, in its precision and memory format."""

from __future__ import annotations

import threading
import time

import torch
from torch import Tensor, nn

from medseg.data.patches.first_stage_channels import append_one_hot
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.models.volumetric.multiplane import as_volumetric
from medseg.runtime.compilation import prepare_compilation
from medseg.runtime.devices import autocast, resolve_precision, to_channels_last
from medseg.runtime.memory import PeakMemory

SLAB_FIRST = (2, 0, 1)
"""Order of the network's axes in the engine. The slab always moves along Z, whatever the axes of the file, so that sums of
logits are always formed in the same order."""


class WindowNetwork:
    """Maps windows `(n, c, Z, X, Y)` to logits `(n, k, Z, X, Y)`.

    In the second stage of a cascade, the last channel of a window holds the class indices of the first stage. It becomes
    one channel per label here, window by window, so that an image with that many channels is never in memory.

    Args:
        model: The network, 2D or 3D.
        saved: Settings of its model folder.
        device: Device to run on.

    Attributes:
        device: Device of the network.
        dtype: Number format of the network.
        model: The network, on its device.
        volumetric: The network as a function of 3D windows; a 2D network is applied slice by slice.
        window: Voxels of a window along Z, X and Y.
        exclusive: Lock to hold while another thread reads an image, whose memory must not count as the network's.

    Raises:
        ConfigError: The device cannot compute in this precision.
    """

    def __init__(self, model: Model, saved: SavedModel, device: torch.device) -> None:
        self.device = device
        self.dtype = resolve_precision(saved.predict.precision, device, model.spatial_dims)
        self.model = to_channels_last(model.to(device).eval(), model.spatial_dims)
        volumetric = as_volumetric(model, saved.slice_view)
        self.volumetric = compile_for_windows(volumetric) if saved.predict.compile else volumetric
        self.window = tuple(saved.window[axis] for axis in SLAB_FIRST)
        self._first_stage_labels = saved.num_first_stage_labels
        self._channels = len(saved.channel_names) + (saved.num_first_stage_labels > 0)
        self._measured: dict[int, tuple[int, float]] = {}
        self.exclusive = threading.Lock()

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the logits of a batch of windows, on the network's device."""
        if self.device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode(), autocast(self.dtype, self.device):
            if self._first_stage_labels:
                batch = append_one_hot(batch, self._first_stage_labels)
            logits: Tensor = self.volumetric(batch.movedim(2, -1))
            return logits.movedim(-1, 2)

    def measured_cost(self, batch_size: int) -> tuple[int, float]:
        """Measure the memory and time of a call.

        The network is run only the first time for each batch size.

        Args:
            batch_size: Number of windows.

        Returns:
            Peak of the additional resident bytes, and seconds.
        """
        if batch_size not in self._measured:
            batch = torch.zeros((batch_size, self._channels, *self.window), device=self.device)
            with self.exclusive, PeakMemory() as memory:
                self(batch)
            began = time.perf_counter()
            self(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._measured[batch_size] = memory.taken, time.perf_counter() - began
        return self._measured[batch_size]


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
