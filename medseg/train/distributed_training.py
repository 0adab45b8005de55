"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import math
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

from medseg.errors import ConfigError
from medseg.runtime.devices import resolve_precision
from medseg.runtime.launch import process_count, processes_per_machine
from medseg.train.settings import TrainSettings
from medseg.train.sync_batch_norm import synchronise_batch_norms

_FABRIC_PRECISION = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}
# The other processes wait while the main process prepares the data, which takes hours for large datasets.
WAIT = timedelta(hours=12)
T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=nn.Module)


class Distributed:
    """The processes that train together, with the device of each and the communication between them.

    Args:
        settings: Settings of training.

    Attributes:
        precision: Name of the data type of the arithmetic.
        size: Number of processes.
        fabric: The accelerator with its processes.
        rank: Rank of this process.

    Raises:
        ConfigError: The device cannot train in the given precision.
    """

    def __init__(self, settings: TrainSettings) -> None:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = resolve_precision(settings.precision, torch.device(accelerator))
        if dtype is torch.float16 and accelerator == "cpu":
            raise ConfigError(
                "train.precision: found float16 on a processor, expected float32 or bfloat16, because its small "
                "gradients need a CUDA device. Choose auto."
            )
        if settings.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.precision = str(dtype).removeprefix("torch.")
        self.size = process_count()
        thaws = bool(settings.freeze) and settings.freeze_steps is not None
        self.fabric = _fabric(accelerator, _FABRIC_PRECISION[dtype], self.size, thaws=thaws)
        self.rank = self.fabric.global_rank

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Return a context that the other processes enter after the main process has left it."""
        if self.size > 1 and not self.is_main:
            distributed.barrier()
        yield
        if self.size > 1 and self.is_main:
            distributed.barrier()

    def broadcast(self, make: Callable[[], T]) -> T:
        """Return on every process what the main process creates."""
        if self.size == 1:
            return make()
        result: T = self.fabric.broadcast(make() if self.is_main else None)  # type: ignore[assignment]
        return result

    def max(self, *values: float) -> list[float]:
        """Return the largest of each number over the processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return [float(value) for value in together]

    def mean(self, loss: float) -> tuple[float, bool]:
        """Return the mean loss of all processes, and whether one of them is not finite."""
        finite = math.isfinite(loss)
        numbers = torch.tensor([loss if finite else 0.0, float(not finite)], dtype=torch.float64)
        total, bad = self.sum(numbers).tolist()
        return total / self.size, bad > 0

    def to_device(self, model: ModelT) -> ModelT:
        """Return the model on the device of this process, with batch norms synchronised over the processes."""
        if self.size > 1:
            synchronise_batch_norms(model)
        return model.to(self.fabric.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, on the CPU."""
        if self.size == 1:
            return tensor
        together = tensor.to(self.fabric.device)
        distributed.all_reduce(together)
        return together.cpu()


def _fabric(accelerator: str, precision: Any, size: int, *, thaws: bool) -> Fabric:
    """Return the accelerator with its processes; `thaws` if some weights have no gradients in the first steps."""
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
        strategy=DDPStrategy(timeout=WAIT, find_unused_parameters=thaws),
        plugins=[TorchElasticEnvironment()],
    )
    # Convolutions of one voxel in channels-last memory: both layouts are the same numbers in the same order.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # A part is frozen in the first steps only.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    fabric.launch()
    return fabric
