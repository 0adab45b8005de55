"""MaskFormer and Mask2Former with ignored voxels and with labels that were not annotated."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.models.maskformer.outputs import semantic_scores
from medseg.models.maskformer.query_label_sets import (
    LossWeights,
    OpenVoxels,
    QuerySetLosses,
    binary_cross_entropies,
    focal_losses,
)

ORGANS = Labels.from_names({"liver": 1, "spleen": 2})
IGNORED = 3  # the value of a voxel that may be anything
SETS = LabelSets.from_annotations(ORGANS, {"a": ("liver",), "b": ("spleen",)})
NOT_SPLEEN = SETS.background_value(("spleen",))  # background or liver
NOT_LIVER = SETS.background_value(("liver",))  # background or spleen
WEIGHTS = LossWeights(classes=1.0, masks=5.0, dice=5.0, no_object=0.1)
SIZE = 16


def compute(classes, masks, label, voxel_losses=binary_cross_entropies):
    voxels = OpenVoxels(label, SETS)
    return QuerySetLosses(WEIGHTS, voxel_losses, None)(classes, masks, voxels.targets(None, 8), voxels)


def square(start, length=6):
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[start : start + length, start : start + length] = True
    return mask


def queries(*regions, classes=None):
    """Class logits (1 q 4) and mask logits (1 q x y) of queries that are nearly sure of their regions."""
    masks = torch.stack([torch.where(region, 4.0, -4.0) for region in regions])[None]
    chosen = torch.tensor([list(classes)])
    return 6.0 * functional.one_hot(chosen, 4).float(), masks


@pytest.mark.parametrize("name", ["maskformer_resnet_18", "mask2former_resnet_50"])
def test_without_open_voxels_the_losses_are_those_of_the_papers(name, toy, monkeypatch):
    model = toy(name).eval()
    torch.manual_seed(1)
    image, label = torch.randn(2, 2, 64, 96), torch.zeros(2, 1, 64, 96, dtype=torch.long)
    label[0, 0, 8:32, 20:72] = 2
    label[1, 0, 4:52, 60:88] = 1
    if name.startswith("mask2former"):
        grid = torch.stack(
            torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(96) + 0.5) / 96, indexing="ij"), -1
        ).flip(-1)
        everywhere = grid.reshape(1, -1, 2)
        criterion = model.network.criterion
        monkeypatch.setattr(
            criterion,
            "sample_points_using_uncertainty",
            lambda logits, *_: everywhere.expand(len(logits), -1, -1),
        )
        monkeypatch.setattr(torch, "rand", lambda *size, **_: everywhere[:, : size[1]].clone())
        criterion.matcher.num_points = everywhere.shape[1]
    expected = model.losses(image, label)
    model.label_sets = SETS
    found = model.losses(image, label)
    assert {one for one in found if not one.startswith("marginal")} == set(expected)
    for one, value in found.items():
        assert value.item() == pytest.approx(
            expected[one].item() if one in expected else 0.0, rel=2e-3, abs=1e-6
        ), one


@pytest.mark.parametrize("voxel_losses", [binary_cross_entropies, focal_losses])
def test_ignored_voxels_have_no_gradient_unlike_background(voxel_losses):
    label = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.long)
    label[0, 0][square(2)] = 1
    label[..., 12:] = IGNORED
    torch.manual_seed(0)
    classes = torch.randn(1, 6, 4, requires_grad=True)
    masks = torch.randn(1, 6, SIZE, SIZE, requires_grad=True)

    def gradient(values):
        loss = torch.stack(list(compute(classes, masks, values, voxel_losses).values())).sum()
        return torch.autograd.grad(loss, masks)[0][..., 12:]

    assert gradient(label).abs().max() == 0
    as_background = label.masked_fill(label == IGNORED, 0)
    assert gradient(as_background).abs().max() > 1e-3


def test_a_prediction_in_ignored_voxels_is_no_false_positive():
    """A query that finds a spleen where nobody looked is not pushed to 'no object'; elsewhere it is."""
    label = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.long)
    label[..., 8:, 8:] = IGNORED
    background = ~square(9)
    classes, masks = queries(background, square(9), classes=(0, 2))

    def class_gradient(values):
        changed = classes.clone().requires_grad_()
        return torch.autograd.grad(compute(changed, masks, values)["cross_entropy"], changed)[0][0, 1]

    assert class_gradient(label).abs().max() < 1e-6
    assert class_gradient(label.masked_fill(label == IGNORED, 0))[2] > 0.05


def test_a_label_that_was_not_annotated_is_no_negative():
    """In a case with the liver only, a spleen may be predicted in the background; a second liver may not."""
    label = torch.full((1, 1, SIZE, SIZE), NOT_LIVER)
    label[0, 0][square(1)] = 1

    def cross_entropy(values, found):
        classes, masks = queries(square(1), square(9), classes=(1, found))
        return float(compute(classes, masks, values)["cross_entropy"])

    naive = label.masked_fill(label == NOT_LIVER, 0)
    assert cross_entropy(label, 2) < 0.02
    assert cross_entropy(label, 1) > 0.3
    assert cross_entropy(naive, 2) > 0.3


def test_matching_leaves_open_voxels_out():
    """The query that covers the liver wins, although most of its mask is where nobody looked."""
    label = torch.full((1, 1, SIZE, SIZE), IGNORED)
    label[..., :6] = 0
    liver = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    liver[4:12, :6] = True
    label[0, 0][liver] = 1
    wide, part = torch.zeros_like(liver), torch.zeros_like(liver)
    wide[4:12, :] = True
    part[5:11, :6] = True
    classes, masks = queries(part, wide, classes=(1, 1))
    losses = QuerySetLosses(WEIGHTS, binary_cross_entropies, None)

    def match(values):
        voxels = OpenVoxels(values, SETS)
        (targets,) = voxels.targets(None, 8)
        (number,) = (targets.classes == 1).nonzero()[:, 0].tolist()
        queries_found, targets_found = losses._match(
            classes[0], masks[0], targets, voxels.known(0, targets.classes)
        )
        return int(queries_found[targets_found == number])

    assert match(label) == 1
    assert match(label.masked_fill(label == IGNORED, 0)) == 0


def learned(values, steps=70):
    """The semantic map of queries that are optimised for one image with several annotations (n 1 x y)."""
    torch.manual_seed(0)
    classes = torch.zeros(1, 5, 4).normal_(std=0.1).requires_grad_()
    masks = torch.zeros(1, 5, SIZE, SIZE).normal_(std=0.1).requires_grad_()
    optimizer = torch.optim.Adam([classes, masks], lr=0.3)
    copies = len(values)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = compute(classes.expand(copies, -1, -1), masks.expand(copies, -1, -1, -1), values)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return semantic_scores(classes[0], masks[0]).argmax(0)


def test_annotations_of_single_labels_teach_all_of_them():
    """Three annotators draw the liver, one the spleen: together they define every voxel, the background included.

    If what was not drawn is background, the majority says that the spleen is background.
    """
    truth = torch.zeros(SIZE, SIZE, dtype=torch.long)
    truth[square(1)] = 1
    truth[square(9)] = 2
    liver_only = torch.where(truth == 1, 1, NOT_LIVER)
    spleen_only = torch.where(truth == 2, 2, NOT_SPLEEN)
    annotations = torch.stack([liver_only, liver_only, liver_only, spleen_only])[:, None]
    assert (learned(annotations) == truth).float().mean() > 0.98

    naive = learned(torch.where(annotations > 2, 0, annotations))
    assert (naive[truth == 2] == 2).float().mean() < 0.2
