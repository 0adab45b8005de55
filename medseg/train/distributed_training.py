"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler

from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.runtime.devices import resolve_precision, set_tf32
from medseg.runtime.distributed import leave_process_group
from medseg.runtime.launch import process_count, process_rank, processes_per_machine
from medseg.runtime.worker_process import end_with_torchrun
from medseg.train.settings import TrainSettings
from medseg.train.sync_batch_norm import synchronise_batch_norms

_FABRIC_PRECISION = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}
_DAYS_OF_PREPARATION = timedelta(days=30)
_PLACE = re.compile(r"^\[/\S+\] ")  # in the source of gloo
_LOST_RANK = re.compile(r"gloo|NCCL|ProcessGroup|Connection (closed|reset) by peer")
T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=nn.Module)


@contextmanager
def lost_ranks_explained() -> Iterator[None]:
    """Return a context that reports the end of another process of this training as `ResourceError`.

    It is noticed in the next exchange of numbers, which is also a part of the backward pass.

    Raises:
        ResourceError: Another process ended or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not _LOST_RANK.search(str(error)):
            raise
        reason = _PLACE.sub("", str(error).strip().splitlines()[0]).partition(". This is")[0][:200]
        raise ResourceError(
            f"torchrun: process {process_rank()} lost its connection to another one ({reason}), expected all of them to run "
            "until the end. See the messages of the others; the system kills processes when memory runs out: lower train.workers "
            "or --nproc-per-node, or free memory."
        ) from error


class Distributed:
    """The processes that train together, with the device of each and the communication between them.

    Args:
        settings: Settings of training.
        spatial_dims: Number of spatial axes of the model, 2 or 3; ``precision=auto`` depends on it.

    Attributes:
        precision: Name of the arithmetic.
        size: Number of processes.
        fabric: The accelerator with its processes.
        rank: Rank of this process.

    Raises:
        ConfigError: The device cannot train in the given precision.
    """

    def __init__(self, settings: TrainSettings, spatial_dims: int) -> None:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = resolve_precision(settings.precision, torch.device(accelerator), spatial_dims)
        if dtype is torch.float16 and accelerator == "cpu":
            raise ConfigError(
                "train.precision: found float16 on a processor, expected float32 or bfloat16, because its small "
                "gradients need a CUDA device. Choose auto."
            )
        _configure_arithmetic(settings)
        self.precision = "tf32" if settings.precision == "tf32" else str(dtype).removeprefix("torch.")
        self.size = process_count()
        end_with_torchrun()
        thaws = bool(settings.freeze) and settings.freeze_steps is not None
        self.fabric = _fabric(accelerator, _FABRIC_PRECISION[dtype], self.size, thaws=thaws)
        self.rank = self.fabric.global_rank
        # A group for numbers on the host: NCCL would wait for the device in each step. Its timeout is long, because the
        # other processes wait in it while the main process prepares the data, which takes hours for large datasets; the
        # default group keeps its timeout of minutes, so that a process that hangs in training is noticed.
        self._host_group: distributed.ProcessGroup | None = None
        if self.size > 1:
            self._host_group = distributed.new_group(backend="gloo", timeout=_DAYS_OF_PREPARATION)  # type: ignore[assignment]

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    @property
    def gradient_scaler(self) -> GradScaler | None:
        """The scaler of the gradients in float16; None in other precisions."""
        scaler: GradScaler | None = getattr(self.fabric.strategy.precision, "scaler", None)
        return scaler

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Return a context that the other processes enter after the main process has left it without an error.

        Fabric's `rank_zero_first` also lets them in after an error of the main process. They would repeat its work, and the
        main process would not end until they have done so.
        """
        if not self.is_main:
            self._wait_for_all()
        yield
        if self.size > 1 and self.is_main:
            self._wait_for_all()

    @lost_ranks_explained()
    def _wait_for_all(self) -> None:
        distributed.barrier(self._host_group)

    @lost_ranks_explained()
    def broadcast(self, create: Callable[[], T]) -> T:
        """Call `create` on the main process and return its result on every process, however long that takes."""
        with self.main_first():
            created = create() if self.is_main else None
        result: T = self.fabric.broadcast(created)  # type: ignore[assignment]
        return result

    def gather(self, create: Callable[[], T]) -> list[T]:
        """Call `create` on every process and return all results, in the order of the ranks, however long that takes.

        Args:
            create: Function that each process calls.

        Returns:
            One result per process.

        Raises:
            MedsegError: `create` failed in one of the processes; all of them raise its error.
        """
        own: T | MedsegError
        try:
            own = create()
        except MedsegError as error:
            if self.size == 1:
                raise
            own = error
        found: list[Any] = [own]
        if self.size > 1:
            found = [None] * self.size
            distributed.all_gather_object(found, own, group=self._host_group)
        for one in found:
            if isinstance(one, MedsegError):
                raise one
        return found

    def max(self, *values: float) -> list[float]:
        """Return the largest of each number over the processes, without waiting for the device."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(together, distributed.ReduceOp.MAX, group=self._host_group)
        return together.tolist()

    def mean_loss(self, loss: Tensor) -> Tensor:
        """Return the mean loss `()` of all processes in float64, on the device; NaN if one of them is not finite."""
        loss = loss.detach().double()
        if self.size == 1:
            return loss
        finite = loss.isfinite()
        # Two numbers, so that infinite losses of opposite sign are found as well.
        numbers = torch.stack([loss.masked_fill(~finite, 0.0), (~finite).double()])
        distributed.all_reduce(numbers)
        return (numbers[0] / self.size).masked_fill(numbers[1] > 0, math.nan)

    def to_device(self, model: ModelT) -> ModelT:
        """Return the model on the device of this process, with batch norms synchronised over the processes."""
        if self.size > 1:
            synchronise_batch_norms(model)
        return model.to(self.fabric.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, on the CPU."""
        if self.size == 1:
            return tensor.cpu()
        together: Tensor = self.fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[assignment]
        return together.cpu()


def _configure_arithmetic(settings: TrainSettings) -> None:
    """Set what PyTorch keeps per process: the meaning of float32, and the choice of algorithms on CUDA devices."""
    set_tf32(settings.precision == "tf32")
    # All patches of a training have one shape, so that trying the algorithms of a convolution once pays off.
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products are refused
        torch.use_deterministic_algorithms(True)


def _fabric(accelerator: str, precision: Any, size: int, *, thaws: bool) -> Fabric:
    """Return the accelerator with its processes; `thaws` if some weights have no gradients in the first steps."""
    # Fabric advises a lower precision on devices with Tensor Cores, and announces each process.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if size == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    here = processes_per_machine()
    if accelerator == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun: found {here} processes for {torch.cuda.device_count()} CUDA devices, expected one process per device. Lower "
            "--nproc-per-node."
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=size // here,
        precision=precision,
        # The search in each step costs time; without it the processes would wait for gradients of frozen weights.
        strategy=DDPStrategy(find_unused_parameters=thaws),
        plugins=[TorchElasticEnvironment()],
    )
    # Convolutions of one voxel in channels-last memory: both layouts are the same numbers in the same order.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # A part is frozen in the first steps only.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    fabric.launch()
    atexit.unregister(leave_process_group)
    atexit.register(leave_process_group)
    return fabric
