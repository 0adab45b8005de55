"""Distillation of old labels: values by hand, and the voxels that it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.old_label_distillation import WEIGHT, OldLabelDistillation

LABELS = Labels.from_names({"background": 0, "liver": 1, "spleen": 2, "tumour": 3})
SETS = LabelSets.from_annotations(LABELS, {"case": ("tumour",), "other": ("liver", "tumour")})
OLD = (0, 2, 1, None)  # the old network has background, spleen, liver, and one label that is not kept


def voxels(probabilities, values):
    """Logits of voxels with these probabilities, and their label values."""
    return torch.tensor(probabilities).log().T[None, :, :], torch.tensor(values)[None, None]


def expected(p, q):
    """The loss of one open voxel with these probabilities of the background and of those of two old labels that are open."""
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    overlaps = [2 * a * b / (a * a + b * b) for a, b in zip(p[1:], q[1:], strict=True)]
    return WEIGHT * (divergence + sum(1 - overlap for overlap in overlaps) / 2)


def test_the_divergence_is_that_of_classes_that_both_networks_know():
    """The new label and the label that is not kept count as background."""
    open_set = SETS.background_value(("tumour",))  # background, liver or spleen
    logits, label = voxels([[0.2, 0.3, 0.1, 0.4]], [open_set])
    old = torch.tensor([0.4, 0.1, 0.3, 0.2])[None, :, None]
    found = OldLabelDistillation(SETS, OLD)(logits, label, old)
    q = [0.2 / 0.6, 0.3 / 0.6, 0.1 / 0.6]  # the tumour is annotated, so that it is excluded here
    p = [0.4 + 0.2, 0.3, 0.1]
    assert float(found) == pytest.approx(expected(p, q), rel=1e-4)


def test_annotated_old_labels_are_excluded_and_annotated_voxels_do_not_count():
    spleen_open = SETS.background_value(("liver", "tumour"))
    logits, label = voxels([[0.5, 0.2, 0.2, 0.1], [0.1, 0.7, 0.1, 0.1]], [spleen_open, 1])
    old = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.9, 0.0, 0.1, 0.0]]).T[None]
    found = OldLabelDistillation(SETS, OLD)(logits, label, old)
    p, q = [0.5 / 0.8, 0.3 / 0.8], [0.5 / 0.7, 0.2 / 0.7]
    assert float(found) == pytest.approx(expected(p, q), rel=1e-4)


def test_equal_networks_have_no_loss_and_no_gradient():
    labels = Labels.from_names({"background": 0, "liver": 1, "spleen": 2})
    sets = LabelSets.from_annotations(labels, {"case": ()})
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.full((2, 1, 4, 4), sets.background_value(()))
    loss = OldLabelDistillation(sets, (0, 1, 2))(logits, label, logits.detach().softmax(1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-7


def test_gradients_stay_finite_for_certain_networks_and_without_open_voxels():
    logits = torch.tensor([60.0, -60.0, 0.0, 80.0]).view(1, 4, 1).expand(1, 4, 3).clone().requires_grad_()
    old = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(1, 4, 1).expand(1, 4, 3)
    distillation = OldLabelDistillation(SETS, OLD)
    for values in ([4, 5, 6], [0, 1, 2]):
        loss = distillation(logits, torch.tensor(values).view(1, 1, 3), old)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    assert loss.item() == 0
    assert gradient.abs().max() == 0
