"""Slices of an image that are prepared and uploaded while the device works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from medseg.inference.sliding.slices import Slices

Request = tuple[int, int, slice | None]
Observer = Callable[[int, Tensor, slice | None], None]


class ReadAhead:
    """An image whose next slices are prepared in a thread and copied to a device.

    Copies to a CUDA device start from pinned memory, on a stream of their own. One request is prepared ahead, so that at
    most two are in memory.

    Args:
        image: The image.
        requests: The slices that will be requested, in order: first slice, slice after the last one, and columns.
        device: Device that the slices are copied to.
        observe: Called in the thread with the first slice, the slices on the CPU and the columns of each request.

    Attributes:
        shape: Channels and voxels per axis.
    """

    def __init__(
        self,
        image: Slices,
        requests: Iterable[Request],
        device: torch.device,
        observe: Observer | None = None,
    ) -> None:
        self.shape = image.shape
        self._image = image
        self._device = device
        self._observe = observe
        self._requests = iter(requests)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._pending: deque[tuple[Request, Future[tuple[Tensor, torch.cuda.Event | None]]]] = deque()
        self._start_next()

    def slices(self, first: int, last: int, columns: slice | None = None) -> Tensor:
        """Return the next slices on the device, see `Slices`; they must be those of the next request."""
        request, future = self._pending.popleft()
        if request != (first, last, columns):
            raise AssertionError(f"slices {(first, last, columns)} were requested instead of {request}")
        self._start_next()
        values, copied = future.result()
        if copied is not None:  # pragma: gpu
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            values.record_stream(current)  # so that its memory is not reused before it has been read
        return values

    def _start_next(self) -> None:
        for request in self._requests:
            self._pending.append((request, self._pool.submit(self._load, request)))
            return

    def _load(self, request: Request) -> tuple[Tensor, torch.cuda.Event | None]:
        first, _, columns = request
        values = self._image.slices(*request)
        if self._observe is not None:
            self._observe(first, values, columns)
        if self._stream is not None:  # pragma: gpu
            with torch.cuda.stream(self._stream):
                on_device = values.pin_memory().to(self._device, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(self._stream)
            return on_device, copied
        return values.to(self._device), None

    def close(self) -> None:
        """End the thread; slices that were prepared and not requested are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
