"""Losses of query models with denominators averaged over all ranks, so that they equal those of a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medseg.runtime.distributed import mean_over_ranks, world_size

Matches = list[tuple[Tensor, Tensor]]
"""For each image, the matched queries and the targets to which they are matched."""

ClassLoss = Callable[[Tensor, list[Tensor], Matches], dict[str, Tensor]]


def average_targets(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """Return the number of target masks in the batch, at least 1, averaged over the ranks in distributed training.

    The mask losses are divided by it, so that ranks with few targets do not outweigh the others.
    """
    count = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
    return mean_over_ranks(count).clamp(min=1)


def rank_mean_class_loss(criterion: Any) -> ClassLoss:
    """Return the class loss of transformers' `criterion`, divided by the mean over ranks of the total query weight.

    The original loss divides by the total weight of the rank's own queries, which depends on the number of its
    instances. With the mean, the average over ranks equals the loss of a single process with all images.
    """
    own, unmatched = criterion.loss_labels, float(criterion.eos_coef)

    def class_loss(logits: Tensor, labels: list[Tensor], indices: Matches) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = own(logits, labels, indices)
        if world_size() == 1:
            return losses
        matched = sum(len(queries) for queries, _ in indices)
        weight = logits.new_tensor(matched + unmatched * (logits.shape[0] * logits.shape[1] - matched))
        share = weight / mean_over_ranks(weight.clone())
        return {name: loss * share for name, loss in losses.items()}

    return class_loss
