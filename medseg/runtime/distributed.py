"""Processes that train together: sums and means over all of them."""

from __future__ import annotations

import torch
from torch import Tensor


def world_size() -> int:
    """The processes that train together; 1 without a process group."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def mean_over_ranks(number: Tensor) -> Tensor:
    """Mean over the processes, in the memory of `number`; no gradient."""
    if world_size() > 1:
        torch.distributed.all_reduce(number)
        number /= world_size()
    return number


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over the processes, through which gradients flow to all of them."""
    if world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    together: Tensor = all_reduce(tensor)
    return together
