"""Losses against figures by hand, MONAI and nnU-Net's golden values."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch

from medseg.errors import ConfigError
from medseg.losses import LOSSES, build_loss
from medseg.train.settings import LossName


def batch(dims=3, classes=3):
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4, 6)[:dims]
    logits = torch.randn(2, classes, *shape, generator=generator, requires_grad=True)
    return logits, torch.randint(0, classes, (2, 1, *shape), generator=generator)


def test_settings_know_the_same_names():
    assert get_args(LossName) == LOSSES


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_loss_is_a_finite_scalar_with_gradients(name, batch_dice, dims):
    logits, label = batch(dims)
    loss = build_loss(name, batch_dice=batch_dice)(logits, label)
    assert loss.shape == ()
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("filled", [0, 2])
def test_patches_of_one_class_are_no_trouble(name, filled):
    logits, label = batch()
    loss = build_loss(name)(logits, torch.full_like(label, filled))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_right_answer_costs_less_than_the_wrong_one(name):
    _, label = batch()
    right = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float() * 20
    loss = build_loss(name)
    assert float(loss(right, label)) < 0.02
    assert float(loss(right.roll(1, dims=1), label)) > float(loss(right, label)) + 0.3


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_ce_by_hand(batch_dice):
    logits, label = batch()
    p = logits.detach().double().softmax(1)
    t = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).double()
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    dice = (2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)
    foreground = dice[1:] if batch_dice else dice[:, 1:]
    expected = 1 - foreground.mean() - (t * p.log()).sum(1).mean()
    loss = build_loss("dice_ce", batch_dice=batch_dice)(logits, label)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_ce_equals_monais_sum(batch_dice):
    from monai.losses import DiceCELoss

    logits, label = batch()
    other = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=batch_dice,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    # MONAI leaves the background out of the Dice term only.
    torch.testing.assert_close(
        build_loss("dice_ce", batch_dice=batch_dice)(logits, label), other(logits, label)
    )


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_ce_equals_golden_values_up_to_the_constant_one(shared_reference, batch_dice):
    """nnU-Net's Dice term is −Dice, ours 1 − Dice; its smoothing differs by less than the tolerance."""
    golden = json.loads((shared_reference / "numeric_golden.json").read_text())["losses"]["values"]
    b, c, i, j, k = torch.meshgrid(*(torch.arange(n) for n in (2, 3, 3, 4, 5)), indexing="ij")
    logits = 3 * torch.sin((1 + b + 2 * c + 3 * i + 5 * j + 7 * k).float())
    label = ((i + 2 * j + 3 * k + b) % 3)[:, :1]
    loss = build_loss("dice_ce", batch_dice=batch_dice)(logits, label)
    assert float(loss) - 1 == pytest.approx(golden[f"dc_and_ce_batch_dice_{batch_dice}"], abs=1e-5)
    dice = build_loss("dice", batch_dice=batch_dice)(logits, label)
    assert float(dice) - 1 == pytest.approx(golden[f"soft_dice_batch_dice_{batch_dice}"], abs=1e-5)


def test_batch_dice_sums_before_dividing():
    logits, label = batch()
    logits = logits.detach()
    label[0] = 0  # a patch without foreground counts nothing of its own
    one, other = (float(build_loss("dice", batch_dice=flag)(logits, label)) for flag in (False, True))
    assert one > other + 0.05


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown loss 'dice-ce'\. Did you mean 'dice_ce'\? Known: dice_ce"
    ):
        build_loss("dice-ce")
