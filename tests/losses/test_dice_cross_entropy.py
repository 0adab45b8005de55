"""Dice + cross-entropy in closed form: value, gradient and memory against the sum of two losses and MONAI."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.builtin import SumOfLosses
from medseg.losses.dice_cross_entropy import DiceCrossEntropy, scattered_counts
from medseg.losses.label_set_losses import LabelSetCrossEntropy, LabelSetDice
from tests.helpers.memory import memory_taken

ORGANS = Labels.from_names({f"organ_{i}": i for i in range(1, 7)})
REGIONS = LabelSets.from_annotations(ORGANS.with_regions({"outer": [1, 2, 3], "inner": [2]}))
LABEL_SETS = {
    "classes": LabelSets.from_annotations(ORGANS),
    "ignore": LabelSets.from_annotations(replace(ORGANS, ignore=9)),
    "partial": LabelSets.from_annotations(
        replace(ORGANS, ignore=9), {"one": ("organ_1", "organ_2"), "other": ("organ_3",)}
    ),
    "regions": REGIONS,
    "regions with sets": replace(REGIONS, sets=(tuple(range(7)), (1, 2))),
}


def example(label_sets, scale=1.0, dtype=torch.float64, shape=(5, 4, 6)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, label_sets.labels.num_outputs, *shape, generator=generator).to(dtype) * scale
    label = torch.randint(0, label_sets.num_values, (2, 1, *shape), generator=generator)
    return logits.requires_grad_(), label


def of_two_terms(label_sets, batch, weights=None):
    return SumOfLosses(LabelSetDice(label_sets, batch=batch), LabelSetCrossEntropy(label_sets, weights))


def value_and_gradient(loss, logits, label):
    value = loss(logits, label)
    return value.detach(), torch.autograd.grad(3 * value, logits)[0]


@pytest.mark.parametrize("name", LABEL_SETS)
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1, 40, 300])
def test_value_and_gradient_equal_those_of_the_two_terms(name, batch, weighted, scale):
    label_sets = LABEL_SETS[name]
    logits, label = example(label_sets, scale)
    weights = torch.linspace(0.5, 4, logits.shape[1]) if weighted else None
    found = value_and_gradient(DiceCrossEntropy(label_sets, batch=batch, weights=weights), logits, label)
    expected = value_and_gradient(of_two_terms(label_sets, batch, weights), logits, label)
    # The two terms count weighted voxels in single precision.
    tolerance = {"rtol": 1e-6, "atol": 1e-9} if weighted else {"rtol": 1e-10, "atol": 1e-12}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("name", LABEL_SETS)
@pytest.mark.parametrize("batch", [False, True])
def test_the_gradient_is_the_derivative(name, batch):
    logits, label = example(LABEL_SETS[name], shape=(3, 2, 2))
    weights = torch.linspace(0.5, 4, logits.shape[1])
    loss = DiceCrossEntropy(LABEL_SETS[name], batch=batch, weights=weights)
    assert torch.autograd.gradcheck(lambda changed: loss(changed, label), logits)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_classes_equal_monai(batch, dims):
    from monai.losses import DiceCELoss

    logits, label = example(LABEL_SETS["classes"], shape=(5, 4, 6)[:dims])
    smooth = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
    other = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch, **smooth)
    found = value_and_gradient(DiceCrossEntropy(None, batch=batch, weights=None), logits, label)
    for one, expected in zip(found, value_and_gradient(other, logits, label), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-9)  # MONAI's reference is float32


@pytest.mark.parametrize("name", LABEL_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_in_single_precision_whatever_the_logits_are(name, dtype):
    logits, label = example(LABEL_SETS[name], 5, dtype)
    loss = DiceCrossEntropy(LABEL_SETS[name], batch=True, weights=None)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(loss, logits, label)
    exact = value_and_gradient(loss, logits.detach().double().requires_grad_(), label)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_the_memory_format_of_the_logits_has_no_influence(name):
    logits, label = example(LABEL_SETS[name])
    loss = DiceCrossEntropy(LABEL_SETS[name], batch=False, weights=None)
    expected = value_and_gradient(loss, logits, label)
    last = logits.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    turned = logits.detach().transpose(2, 4).contiguous().transpose(2, 4).requires_grad_()
    for other in (last, turned):
        for one, same in zip(value_and_gradient(loss, other, label), expected, strict=True):
            torch.testing.assert_close(one, same)


def test_one_loss_serves_networks_of_different_outputs():
    loss = DiceCrossEntropy(None, batch=False, weights=None)
    for outputs in (2, 5):
        logits, label = torch.zeros(1, outputs, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.int64)
        expected = 1 - 2 / (outputs + 1) / (outputs - 1) + torch.tensor(float(outputs)).log()
        torch.testing.assert_close(loss(logits, label), expected, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("partial", [False, True])
def test_118_classes_need_at_most_twice_the_memory_of_the_logits(partial):
    organs = Labels.from_names({f"organ_{i}": i for i in range(1, 118)})
    label_sets = LabelSets.from_annotations(organs, {"a": organs.names[1:60]} if partial else {})
    logits, label = example(label_sets, dtype=torch.float32, shape=(48, 48, 48))
    loss = DiceCrossEntropy(label_sets, batch=False, weights=None)

    def one_step():
        logits.grad = None
        loss(logits, label).backward()

    limit = 2.2 * 4 * logits.numel()
    assert memory_taken(one_step, limit) <= limit


def test_counts_of_a_device_are_those_of_a_processor():
    values = torch.randint(0, 5, (3, 200))
    expected = torch.stack([torch.bincount(value, minlength=7) for value in values])
    assert torch.equal(scattered_counts(values, 7), expected)


@pytest.mark.parametrize("name", ["classes", "regions"])
def test_the_loss_does_not_wait_for_a_device(name, monkeypatch):
    """A tensor of the meta device has no values: reading one, or selecting by them, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    logits, label = example(LABEL_SETS[name], dtype=torch.float32)
    logits = logits.detach().to("meta").requires_grad_()
    loss = DiceCrossEntropy(None if name == "classes" else LABEL_SETS[name], batch=False, weights=None)
    loss(logits, label.to("meta")).backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape
