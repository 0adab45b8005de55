"""Batches on their way to the device."""

from __future__ import annotations

import torch

from medseg.data.patches.patch_dataset import Sample
from medseg.runtime.devices import memory_format


class ToDevice:
    """Copies batches to the device, in the memory format of the network and with maps as int64.

    On a CUDA device, the copies run on a stream of their own: while the device computes a step, the host already fetches
    and copies the batch of the next one. On the processor, nothing is copied.

    Args:
        device: Device of the network.
        spatial_dims: Number of spatial axes of its images, 2 or 3.
    """

    def __init__(self, device: torch.device, spatial_dims: int) -> None:
        self._device = device
        self._format = memory_format(device, spatial_dims)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Sample) -> Sample:
        """Return a batch on the device.

        Args:
            batch: Image `(n, c, *spatial)` and maps `(n, 1, *spatial)`, in pinned memory if the device is a CUDA device.

        Returns:
            The same, the maps as int64: they travel in the smallest type that holds them.
        """
        return {
            name: part.contiguous(memory_format=self._format) if name == "image" else part.long()
            for name, part in self._copied(batch).items()
        }

    def _copied(self, batch: Sample) -> Sample:
        if self._stream is None:
            return {name: part.to(self._device) for name, part in batch.items()}
        with torch.cuda.stream(self._stream):
            moved = {name: part.to(self._device, non_blocking=True) for name, part in batch.items()}
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for part in moved.values():
            part.record_stream(current)  # so that its memory is not reused before the step has read it
        return moved
