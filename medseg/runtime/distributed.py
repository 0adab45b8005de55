"""Sums and means over the ranks of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def mean_over_ranks(number: Tensor) -> Tensor:
    """Return the mean over ranks, without gradients.

    Args:
        number: Tensor of this rank, overwritten by the mean.

    Returns:
        `number` itself; unchanged with a single rank.
    """
    if world_size() > 1:
        torch.distributed.all_reduce(number)
        number /= world_size()
    return number


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over ranks; gradients flow back to all of them.

    Args:
        tensor: Tensor of this rank, of one shape on all ranks.

    Returns:
        The sum, of the same shape; `tensor` itself with a single rank.
    """
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


def leave_process_group() -> None:
    """End the communication with the other ranks; without it, its threads may abort the process while Python ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
