"""Losses against values computed by hand, MONAI and golden values of nnU-Net."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from medseg.errors import ConfigError
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss

LOSSES = ("dice_ce", "dice", "cross_entropy", "dice_focal", "focal", "generalized_dice", "tversky")


def batch(dims=3, classes=3):
    generator = torch.Generator().manual_seed(0)
    shape = (5, 4, 6)[:dims]
    logits = torch.randn(2, classes, *shape, generator=generator, requires_grad=True)
    return logits, torch.randint(0, classes, (2, 1, *shape), generator=generator)


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
def test_patches_of_one_class_have_finite_gradients(name, filled):
    logits, label = batch()
    loss = build_loss(name)(logits, torch.full_like(label, filled))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_correct_answer_costs_less_than_a_wrong_one(name):
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
def test_dice_ce_equals_the_sum_of_monai(batch_dice):
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
        ConfigError, match=r"unknown loss 'dice-ce'\. Did you mean 'dice_ce' or 'dice'.*There are \d+ losses"
    ):
        build_loss("dice-ce")


@pytest.mark.parametrize("name", ["generalized_dice", "tversky"])
@pytest.mark.parametrize("absent", [False, True])
def test_losses_of_several_processes_equal_monai_in_one_process(monkeypatch, name, absent):
    logits, label = batch()
    label = label.clamp(max=1) if absent else label
    alone = build_loss(name, batch_dice=True)(logits, label)
    monkeypatch.setattr("medseg.losses.builtin.world_size", lambda: 2)
    shared = build_loss(name, batch_dice=True)
    assert type(shared).__module__ == "medseg.losses.distributed_overlap"
    torch.testing.assert_close(shared(logits, label), alone)


ORGANS = Labels.from_names({"a": 1, "b": 2})


class _Rendezvous:
    """Two threads in place of two processes: sums through which gradients flow to both."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=60), {}

    def sum(self, tensor):
        self.given[threading.get_ident()] = tensor
        self.barrier.wait()
        total = torch.stack(list(self.given.values())).sum(0)
        self.barrier.wait()
        return total

    def mean(self, number):
        return self.sum(number.detach()) / 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dice_ce", {"class_weights": {"a": 5, "b": 0.5}}),
        ("cross_entropy", {"class_weights": {"a": 5, "b": 0.5}}),
        ("dice_ce", {"batch_dice": True}),
        ("generalized_dice", {"batch_dice": True}),
        ("tversky", {"batch_dice": True}),
        ("tversky", {}),
    ],
)
def test_two_processes_learn_as_one_with_the_doubled_batch(monkeypatch, name, options):
    logits, label = batch()
    label[0, 0, :4] = 0  # unlike amounts of the labels
    alone = build_loss(name, label_sets=LabelSets.from_annotations(ORGANS), **options)(logits, label)
    (gradient,) = torch.autograd.grad(alone, logits)
    others = _Rendezvous()
    monkeypatch.setattr("medseg.losses.builtin.world_size", lambda: 2)
    for module in ("label_set_losses", "distributed_overlap", "dice_cross_entropy"):
        monkeypatch.setattr(f"medseg.losses.{module}.sum_over_ranks", others.sum)
    for module in ("label_set_losses", "dice_cross_entropy"):
        monkeypatch.setattr(f"medseg.losses.{module}.mean_over_ranks", others.mean)
    criteria = [build_loss(name, label_sets=LabelSets.from_annotations(ORGANS), **options) for _ in range(2)]
    halves = zip(criteria, logits.split(1), label.split(1), strict=True)
    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(lambda half: half[0](half[1], half[2]), halves))
    together = torch.stack(losses).mean()
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(torch.autograd.grad(together, logits)[0], gradient)


IGNORE = LabelSets.from_annotations(replace(ORGANS, ignore=9))
PARTIAL = LabelSets.from_annotations(replace(ORGANS, ignore=9), {"case": ("a",)})
OVERLAPPING = LabelSets.from_annotations(ORGANS.with_regions({"both": [1, 2], "inner": [2]}))
FOR_LABEL_SETS = ("dice_ce", "dice", "cross_entropy", "dice_focal", "focal")


def golden_case(classes, outputs=3):
    b, c, i, j, k = torch.meshgrid(*(torch.arange(n) for n in (2, 3, 3, 4, 5)), indexing="ij")
    logits = 3 * torch.sin((1 + b + 2 * c + 3 * i + 5 * j + 7 * k).float())
    return logits[:, :outputs], ((i + 2 * j + 3 * k + b) % classes)[:, :1]


def golden(shared_reference):
    return json.loads((shared_reference / "numeric_golden.json").read_text())["losses"]["values"]


def test_ignore_equals_the_golden_value(shared_reference):
    logits, label = golden_case(4)
    loss = build_loss("dice_ce", batch_dice=True, label_sets=IGNORE)(logits, label)
    expected = golden(shared_reference)["dc_and_ce_ignore_label_3_batch_dice_True"]
    assert float(loss) - 1 == pytest.approx(expected, abs=1e-5)


def test_regions_equal_the_golden_value(shared_reference):
    logits, label = golden_case(3, outputs=2)
    loss = build_loss("dice_ce", batch_dice=True, label_sets=OVERLAPPING)(logits, label)
    expected = golden(shared_reference)["dc_and_bce_regions_batch_dice_True"]
    assert float(loss) - 1 == pytest.approx(expected, abs=1e-5)


def test_regions_with_ignore_equal_the_golden_value_up_to_the_number_of_regions(shared_reference):
    """With an ignore label nnU-Net sums the binary cross-entropies of a voxel; without one it takes their mean."""
    logits, label = golden_case(4, outputs=2)
    label_sets = LabelSets.from_annotations(replace(OVERLAPPING.labels, ignore=9))
    dice, entropy = (
        float(build_loss(name, label_sets=label_sets)(logits, label)) for name in ("dice", "cross_entropy")
    )
    expected = golden(shared_reference)["dc_and_bce_regions_ignore_batch_dice_False"]
    assert dice - 1 + 2 * entropy == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", FOR_LABEL_SETS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_with_every_voxel_known_the_loss_is_the_plain_one(name, batch_dice, dims):
    logits, label = batch(dims)
    plain = build_loss(name, batch_dice=batch_dice)(logits, label)
    known = build_loss(name, batch_dice=batch_dice, label_sets=PARTIAL)(logits, label)
    torch.testing.assert_close(known, plain)


@pytest.mark.parametrize("name", FOR_LABEL_SETS)
def test_ignored_voxels_have_no_gradient_and_the_rest_the_same_loss(name):
    logits, label = batch()
    label[..., 3:] = 3
    loss = build_loss(name, label_sets=IGNORE)(logits, label)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[..., 3:].any()
    assert logits.grad[..., :3].abs().min() > 0
    torch.testing.assert_close(loss, build_loss(name)(logits[..., :3], label[..., :3]))


@pytest.mark.parametrize("name", FOR_LABEL_SETS)
@pytest.mark.parametrize("label_sets", [IGNORE, replace(OVERLAPPING, sets=IGNORE.sets)])
def test_a_completely_ignored_patch_costs_nothing(name, label_sets):
    logits, label = batch(classes=label_sets.labels.num_outputs)
    loss = build_loss(name, label_sets=label_sets)(logits, torch.full_like(label, 3))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_marginal_loss_by_hand():
    logits, label = batch()
    label[:, :, :2] = 4  # background or b
    p = logits.detach().double().softmax(1)
    q = torch.where(label == 4, p[:, :1] + p[:, 2:], p.gather(1, label.clamp(max=2)))
    known = label != 4
    target = torch.nn.functional.one_hot(label[:, 0].clamp(max=2), 3).movedim(-1, 1).double()
    dices = []
    for index, seen in ((1, torch.ones_like(known)), (2, known)):
        a, b = p[:, index : index + 1] * seen, target[:, index : index + 1] * known
        dices.append(
            (2 * (a * b).sum((1, 2, 3, 4)) + 1e-5) / (a.sum((1, 2, 3, 4)) + b.sum((1, 2, 3, 4)) + 1e-5)
        )
    expected = -q.log().mean() + 1 - torch.stack(dices).mean()
    loss = build_loss("dice_ce", label_sets=PARTIAL)(logits, label)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    focal = build_loss("focal", label_sets=PARTIAL)(logits, label)
    torch.testing.assert_close(focal.double(), -((1 - q) ** 2 * q.log()).mean() / 3, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FOR_LABEL_SETS)
def test_the_logit_of_an_unannotated_organ_is_not_lowered(name):
    """If a network finds an organ that was not annotated, labels of background must not suppress it."""
    logits = torch.zeros(2, 3, 4, 4, 4)
    logits[:, 2] = 2  # rightly so: it is organ b all over
    pulls = {}
    for label_sets, value in ((None, 0), (PARTIAL, 4)):
        asked = logits.clone().requires_grad_()
        label = torch.full((2, 1, 4, 4, 4), value)
        label[1] = 2  # a case in which it was drawn
        build_loss(name, batch_dice=True, label_sets=label_sets)(asked, label).backward()
        assert asked.grad is not None
        pulls[value] = asked.grad[0, 2].sum().item()
    assert pulls[0] > 1e-3  # the naive loss lowers the logit of b
    assert pulls[4] <= 0


def test_regions_by_hand():
    logits, label = batch(classes=2)
    label = (label + torch.arange(6) % 2).clamp(max=2)
    p = logits.detach().double().sigmoid()
    t = torch.cat([label > 0, label == 2], 1).double()
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    dice = (2 * (p * t).sum((2, 3, 4)) + 1e-5) / (p.sum((2, 3, 4)) + t.sum((2, 3, 4)) + 1e-5)
    loss = build_loss("dice_ce", label_sets=OVERLAPPING)(logits, label)
    torch.testing.assert_close(loss.double(), entropy + 1 - dice.mean(), atol=1e-6, rtol=0)
    q = t * p + (1 - t) * (1 - p)
    focal = build_loss("focal", label_sets=OVERLAPPING)(logits, label)
    torch.testing.assert_close(focal.double(), -((1 - q) ** 2 * q.log()).mean(), atol=1e-6, rtol=0)


def test_undecided_regions_are_left_out():
    label_sets = replace(OVERLAPPING, sets=((0, 1, 2), (1, 2)))  # 4: of both, perhaps of the inner one
    logits, label = batch(classes=2)
    logits.grad = None
    build_loss("dice_ce", label_sets=label_sets)(logits, torch.full_like(label, 4)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] < 0).all()
    assert not logits.grad[:, 1].any()


@pytest.mark.parametrize("name", ["dice_ce", "cross_entropy"])
def test_class_weights_equal_those_of_torch(name):
    logits, label = batch()
    plain = LabelSets.from_annotations(ORGANS)
    weighted = build_loss("cross_entropy", label_sets=plain, class_weights={"b": 5, "background": 0.5})(
        logits, label
    )
    expected = torch.nn.functional.cross_entropy(logits, label[:, 0], torch.tensor([0.5, 1, 5]))
    torch.testing.assert_close(weighted, expected)
    weights = {"b": 5.0, "background": 0.5}
    known = build_loss(name, label_sets=plain, class_weights=weights)(logits, label)
    torch.testing.assert_close(
        build_loss(name, label_sets=PARTIAL, class_weights=weights)(logits, label), known
    )


def test_class_weights_of_regions_and_of_voxels_that_may_be_of_several():
    logits, label = batch(classes=2)
    costs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.cat([label > 0, label == 2], 1).float(), reduction="none"
    ).mean((0, 2, 3, 4))
    loss = build_loss("cross_entropy", label_sets=OVERLAPPING, class_weights={"inner": 3})(logits, label)
    torch.testing.assert_close(loss, (costs[0] + 3 * costs[1]) / 4)
    logits, label = torch.zeros(1, 3, 1, 1, 2), torch.tensor([4, 1]).view(1, 1, 1, 1, 2)
    loss = build_loss("cross_entropy", label_sets=PARTIAL, class_weights={"background": 3, "b": 7})(
        logits, label
    )
    p = torch.tensor([2 / 3, 1 / 3])
    torch.testing.assert_close(loss, -(3 * p[0].log() + p[1].log()) / 4)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(FOR_LABEL_SETS)))
@pytest.mark.parametrize(
    ("label_sets", "reason"),
    [(IGNORE, "an ignore label"), (PARTIAL, "partially annotated cases"), (OVERLAPPING, "regions")],
)
def test_losses_that_know_only_classes_refuse(name, label_sets, reason):
    with pytest.raises(
        ConfigError, match=f"train.loss: found {name} with {reason}.*expected one of cross_entropy, dice"
    ):
        build_loss(name, label_sets=label_sets)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("dice", {"a": 2}, "found weights with the loss dice, expected a loss with cross-entropy"),
        ("dice_ce", {"c": 2}, "unknown name 'c'.*Known: background, a, b"),
        ("dice_ce", {"a": 0, "b": 0, "background": 0}, "found only zeros"),
    ],
)
def test_class_weights_that_cannot_be_used(name, weights, message):
    with pytest.raises(ConfigError, match=f"train.class_weights: {message}"):
        build_loss(name, label_sets=LabelSets.from_annotations(ORGANS), class_weights=weights)
