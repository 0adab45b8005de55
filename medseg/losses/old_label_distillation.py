"""Distillation of the labels of an earlier network into one that also learns new labels.

Let S be the set of classes that a voxel may belong to (see `medseg.labels.label_sets`), p the probabilities of the old
network and q those of the new one, both restricted to S and scaled to the sum 1. Labels that only one of the networks
knows count as background, because the old network learned them as background (Cermelli et al. 2020, "Modeling the
Background", arXiv:2002.00718). The loss counts the voxels whose annotation leaves open whether they belong to an old
label: the mean of Σ p·log(p/q), plus 1 − 2·Σpq / (Σp² + Σq²) averaged over the old labels, so that small organs count as
much as large ones. Both are 0 where the networks agree. Annotated voxels are left to the other losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.labels.label_sets import LabelSets
from medseg.runtime.distributed import mean_over_ranks

WEIGHT = 2.0
"""Weight of the loss. It does not oppose the annotated labels, which are outside of S or not open, but larger ones delay them."""

_LEAST, _SMOOTH = 1e-6, 1e-5


class OldLabelDistillation(nn.Module):
    """Kullback-Leibler divergence and overlap of the old and the new probabilities at open voxels.

    Args:
        label_sets: Classes that each label value may stand for.
        old_classes: Class of the old network for each class of the new one, the background included; None for new labels.
    """

    def __init__(self, label_sets: LabelSets, old_classes: Sequence[int | None]) -> None:
        super().__init__()
        self.shared = [new for new, old in enumerate(old_classes) if new > 0 and old is not None]
        self.old = [old for new, old in enumerate(old_classes) if new > 0 and old is not None]
        possible = torch.from_numpy(label_sets.possible())
        self.allowed = possible[:, self.shared]
        self.background = possible.clone()
        self.background[:, self.shared] = False
        self.open = (possible.sum(1) > 1) & self.allowed.any(1)

    def forward(self, logits: Tensor, label: Tensor, probabilities: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            logits: Logits `(n, k, *spatial)` of the new network.
            label: Label values `(n, 1, *spatial)`.
            probabilities: Probabilities `(n, k_old, *spatial)` of the old network.

        Returns:
            The loss, 0 where both networks agree.
        """
        values = label[:, 0].long()
        is_open = self.open.to(label.device)[values]
        x = logits.movedim(1, -1)[is_open]
        p = probabilities.movedim(1, -1)[is_open].to(x.dtype)
        values = values[is_open]
        allowed, background = (table.to(label.device)[values] for table in (self.allowed, self.background))
        log_q = functional.log_softmax(x, -1)
        others = log_q.masked_fill(~background, -torch.inf).logsumexp(-1, keepdim=True)
        # A finite number instead of −∞: it is multiplied by p = 0, and its gradient must be 0, too.
        own = torch.where(allowed, log_q[:, self.shared], log_q.new_tensor(-1e4))
        log_q = functional.log_softmax(torch.cat([others, own], -1), -1)
        p_own = p[:, self.old] * allowed
        p_others = (1 - p[:, self.old].sum(-1, keepdim=True)).clamp(min=0)
        joined = torch.cat([p_others, p_own], -1)
        joined = joined / joined.sum(-1, keepdim=True).clamp(min=_LEAST)
        divergence = (torch.xlogy(joined, joined) - joined * log_q).sum()
        divergence = divergence / mean_over_ranks(is_open.sum().to(x.dtype)).clamp(min=1.0)
        p_own, q_own = joined[:, 1:], log_q[:, 1:].exp() * allowed
        products, squares = (p_own * q_own).sum(0), (p_own**2 + q_own**2).sum(0)
        overlap = (2 * products + _SMOOTH) / (squares + _SMOOTH)
        loss: Tensor = WEIGHT * (divergence + (1 - overlap).mean())
        return loss
