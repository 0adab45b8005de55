"""Losses of the last steps, read from the device one step late so that the host need not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from medseg.runtime.devices import HostCopy


class StepLosses:
    """Losses on their way from the device to the host.

    While a CUDA device computes a step, the host prepares the next one. A number is copied in the background and read one
    step later, when it has long arrived. On the processor nothing is pending: each loss is read in its own step.

    Args:
        device: Device of the losses.

    Attributes:
        lag: Number of losses that stay unread.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag = 1 if device.type == "cuda" else 0
        self._pending: deque[tuple[int, HostCopy]] = deque()

    def add(self, step: int, loss: Tensor) -> None:
        """Start to copy the loss of a step.

        Args:
            step: Number of the step.
            loss: Loss `()`, on the device.
        """
        self._pending.append((step, HostCopy(loss)))

    def read(self, *, everything: bool = False) -> Iterator[tuple[int, float]]:
        """Yield step and loss, in order; the newest ones only with `everything`, which waits for the device."""
        while len(self._pending) > (0 if everything else self.lag):
            step, loss = self._pending.popleft()
            yield step, float(loss.tensor())
