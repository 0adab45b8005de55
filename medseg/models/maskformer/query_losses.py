"""Losses of query models whose denominators are shared by all processes, as one process with all images has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medseg.runtime.distributed import mean_over_ranks, world_size

Matches = list[tuple[Tensor, Tensor]]
"""For each image the matched queries, and the targets that they are matched with."""

ClassLoss = Callable[[Tensor, list[Tensor], Matches], dict[str, Tensor]]


def average_targets(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """The number of target masks in the batch, at least 1; averaged over the ranks of a distributed training.

    By it the mask losses are divided, so that ranks with few objects do not outweigh the others.
    """
    count = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
    return mean_over_ranks(count).clamp(min=1)


def rank_mean_class_loss(criterion: Any) -> ClassLoss:
    """The class loss of transformers' `criterion`, divided by the mean total weight of the ranks' queries.

    The loss divides by the weights of the rank's own queries, which differ with the number of its objects: only with
    the mean is the average over ranks the loss of one process with all images.
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
