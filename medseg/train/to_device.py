"""Batches on their way to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.data.patches.drawn_patch import PackedPatches
from medseg.data.patches.patch_dataset import PatchDataset, Sample
from medseg.runtime.devices import memory_format
from medseg.train.batches import Batch


class ToDevice:
    """Moves batches to the device, in the memory format of the network and with maps as int64.

    On a CUDA device, the copies run on a stream of their own: while the device computes a step, the host already fetches
    and copies the batch of the next one. On the processor, nothing is copied. Drawn patches are augmented on arrival.

    Args:
        patches: Dataset of the batches.
        device: Device of the network.
        spatial_dims: Number of spatial axes of its images, 2 or 3.
    """

    def __init__(self, patches: PatchDataset, device: torch.device, spatial_dims: int) -> None:
        self._patches, self._device = patches, device
        self._format = memory_format(device, spatial_dims)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sample:
        """Return a batch on the device.

        Args:
            batch: Image `(n, c, *spatial)` and maps `(n, 1, *spatial)`, or drawn patches; in pinned memory if the device is
                a CUDA device.

        Returns:
            Image and maps, the maps as int64: they travel in the smallest type that holds them. Label probabilities include the
            background, `(n, k, *spatial)`.
        """
        if isinstance(batch, PackedPatches):
            sample = self._patches.finish_batch(batch.map(self._copied))
        else:
            sample = {name: self._copied(part) for name, part in batch.items()}
        return {name: self._prepared(name, part) for name, part in sample.items()}

    def _prepared(self, name: str, part: Tensor) -> Tensor:
        if name == "image":
            return part.contiguous(memory_format=self._format)
        if name == "probabilities":
            return torch.cat([(1 - part.sum(1, keepdim=True)).clamp(min=0), part], 1)
        return part.long()

    def _copied(self, part: Tensor) -> Tensor:
        if self._stream is not None:  # pragma: gpu
            with torch.cuda.stream(self._stream):
                moved = part.to(self._device, non_blocking=True)
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            moved.record_stream(current)  # so that its memory is not reused before the step has read it
            return moved
        return part.to(self._device)
