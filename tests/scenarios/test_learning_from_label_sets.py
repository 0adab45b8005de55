"""Trainings of a tiny network in which a loss of class indices fails and a loss of label sets does not.

The network sees the tissue of one voxel at a time, so its output for a tissue is the optimum of the loss.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss
from medseg.losses.catalog import Loss
from medseg.train.validation import dice_of, predicted_classes

pytestmark = pytest.mark.slow

ORGANS = Labels.from_names({"a": 1, "b": 2})
SHAPE = (8, 8, 8)


def tissues(seed: int, count: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Return an image with one channel per tissue, and the tissue of each voxel `(n 1 x y z)`."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, count, (batch, 1, *SHAPE), generator=generator)
    return nn.functional.one_hot(kinds[:, 0], count).movedim(-1, 1).float(), kinds


def trained_logits(image: Tensor, label: Tensor, outputs: int, criterion: Loss) -> Tensor:
    """Return the logits `(n k x y z)` on the training image after 60 steps."""
    torch.manual_seed(0)
    network = nn.Conv3d(image.shape[1], outputs, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(network(image), label).backward()
        optimizer.step()
    with torch.no_grad():
        return network(image)


def dice(predicted: Tensor, truth: Tensor) -> float:
    overlap = (predicted & truth).sum().item()
    return 2 * overlap / (predicted.sum().item() + truth.sum().item())


def test_scribbles_are_enough_where_the_rest_is_ignored() -> None:
    """One voxel in ten was annotated. If the others count as background, they outvote it."""
    image, truth = tissues(0, 3)
    unseen = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) > 0.1
    naive = trained_logits(image, truth.masked_fill(unseen, 0), 3, build_loss("dice_ce"))
    label_sets = LabelSets.from_annotations(replace(ORGANS, ignore=255))
    ours = trained_logits(
        image, truth.masked_fill(unseen, 3), 3, build_loss("dice_ce", label_sets=label_sets)
    )
    for index in (1, 2):
        assert dice(naive.argmax(1, keepdim=True) == index, truth == index) < 0.1
        assert dice(ours.argmax(1, keepdim=True) == index, truth == index) > 0.95


def test_partially_annotated_cases_teach_every_label() -> None:
    """Label b is annotated in one of five cases only; a loss of class indices suppresses it."""
    image, truth = tissues(0, 3, batch=5)
    label_sets = LabelSets.from_annotations(ORGANS, {"one": None, "others": ("a",)})
    unannotated = (truth == 2) & (torch.arange(5).view(5, 1, 1, 1, 1) > 0)
    some = truth.masked_fill(unannotated, 0)
    background = label_sets.background_value(("a",))
    unknown = (some == 0) & (torch.arange(5).view(5, 1, 1, 1, 1) > 0)
    naive = trained_logits(image, some, 3, build_loss("dice_ce", batch_dice=True))
    criterion = build_loss("dice_ce", batch_dice=True, label_sets=label_sets)
    ours = trained_logits(image, some.masked_fill(unknown, background), 3, criterion)
    assert dice(naive.argmax(1, keepdim=True) == 2, truth == 2) < 0.1
    for logits, index in ((naive, 1), (ours, 1), (ours, 2)):
        assert dice(logits.argmax(1, keepdim=True) == index, truth == index) > 0.95


def test_a_region_is_predicted_where_none_of_its_labels_has_the_largest_probability() -> None:
    """A tissue is background in 40 % of its voxels, and a or b in 30 % each, so the union of both is most likely."""
    image, kinds = tissues(0, 2)
    draw = torch.rand(kinds.shape, generator=torch.Generator().manual_seed(1))
    label = torch.where(draw < 0.4, 0, torch.where(draw < 0.7, 1, 2)) * (kinds == 1)
    regions = ORGANS.with_regions({"both": [1, 2], "inner": [2]})
    naive = trained_logits(image, label, 3, build_loss("cross_entropy"))
    ours = trained_logits(
        image, label, 2, build_loss("cross_entropy", label_sets=LabelSets.from_annotations(regions))
    )
    assert dice(naive.argmax(1, keepdim=True) > 0, label > 0) < 0.1
    assert dice(ours[:, :1] > 0, label > 0) > 0.7
    assert predicted_classes(ours, regions).unique().tolist() == [0, 1]


def test_class_weights_recover_a_rare_label() -> None:
    """A tissue that is a in one voxel of five is predicted as background, unless a has a higher weight."""
    image, kinds = tissues(0, 2)
    draw = torch.rand(kinds.shape, generator=torch.Generator().manual_seed(1))
    label = ((draw < 0.2) & (kinds == 1)).long()
    label_sets = LabelSets.from_annotations(Labels.from_names({"a": 1}))
    naive = trained_logits(image, label, 2, build_loss("cross_entropy"))
    weighted = build_loss("cross_entropy", label_sets=label_sets, class_weights={"a": 10})
    assert not naive.argmax(1).any()
    assert dice(trained_logits(image, label, 2, weighted).argmax(1, keepdim=True) == 1, kinds == 1) > 0.95


def test_validation_uses_only_what_is_known() -> None:
    """Rows are counts by label value: all voxels, and those predicted as a and b."""
    label_sets = LabelSets.from_annotations(replace(ORGANS, ignore=9), {"case": ("a",)})
    counts = torch.tensor([[10, 1, 2], [6, 4, 1], [5, 0, 5], [100, 50, 50], [20, 2, 9]])
    found = dice_of(counts, label_sets).tolist()
    # a: ignored voxels are left out, voxels without annotation of b are not a. b: both are left out.
    assert found == [2 * 4 / (1 + 4 + 0 + 2 + 6), 2 * 5 / (2 + 1 + 5 + 5)]
