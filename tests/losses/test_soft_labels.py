"""Soft labels: the loss of label maps where probabilities are 0 and 1, and the optimum where they are not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medseg.losses.build import build_loss
from medseg.losses.dice_cross_entropy import DiceCrossEntropy
from medseg.losses.soft_labels import soft_dice_cross_entropy


def value_and_gradient(loss, logits):
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_of_zero_and_one_have_the_loss_of_their_label_map(batch, weighted):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (2, 1, 5, 4, 3))
    hot = functional.one_hot(label[:, 0], 4).movedim(-1, 1).double()
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    loss = DiceCrossEntropy(None, batch=batch, weights=weights)
    found = value_and_gradient(lambda x: loss(x, hot), logits)
    expected = value_and_gradient(lambda x: loss(x, label), logits)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_gradient_is_the_derivative():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 3, dtype=torch.float64)
    target = target / target.sum(1, keepdim=True)
    weights = torch.tensor([1.0, 2.0, 0.5])
    assert torch.autograd.gradcheck(
        lambda x: soft_dice_cross_entropy(x, target, batch=False, weights=weights), logits
    )


RATERS = torch.tensor(
    [0.3, 0.8, 0.05]
)  # shares of raters that chose the foreground, in three groups of voxels


def best(loss):
    """The foreground probability of each group of voxels with the least loss."""
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def value():
        optimizer.zero_grad()
        found = loss(torch.stack([torch.zeros(3), logits]).view(1, 2, 3))
        found.backward()
        return found

    optimizer.step(value)
    return logits.detach().sigmoid()


def test_the_optimum_is_the_share_of_the_raters_unlike_that_of_thresholded_labels():
    """A network that learns from the majority, or by the usual Dice of soft labels, becomes surer than the raters."""
    target = torch.stack([1 - RATERS, RATERS]).view(1, 2, 3)
    loss = build_loss("dice_ce")
    assert best(lambda x: loss(x, target)) == pytest.approx(RATERS, abs=0.001)

    majority = (RATERS > 0.5).long().view(1, 1, 3)
    naive = best(lambda x: loss(x, majority))
    assert (naive - RATERS).abs().min() > 0.04

    def usual_dice(x):
        p = x.softmax(1)[:, 1]
        dice = (2 * (p * RATERS).sum() + 1e-5) / (p.sum() + RATERS.sum() + 1e-5)
        return 1 - dice - (target * x.log_softmax(1)).sum() / 3

    assert (best(usual_dice) - RATERS).abs().max() > 0.1
