"""Dice from counts, and that everything that reports Dice agrees with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.evaluation.cross_validation.select_post_processing import label_dice
from medseg.evaluation.label_maps.metrics import compare_label_maps
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.labels.overlap import dice_from_counts
from medseg.train.validation import dice_of
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"one": 1, "two": 2, "absent": 3})


def test_known_values_and_empty_regions():
    np.testing.assert_array_equal(
        dice_from_counts([3, 0, 0, 7], [4, 2, 0, 7], [5, 0, 0, 7]), [2 / 3, 0, np.nan, 1]
    )
    assert dice_from_counts(1, 1, 2) == pytest.approx(2 / 3)
    assert np.isnan(dice_from_counts(0, 0, 0))


def test_evaluation_post_processing_and_validation_agree():
    rng = np.random.default_rng(0)
    predicted, expected = rng.integers(0, 3, (2, 1, 6, 5, 4)).astype(np.uint8)
    classes = range(1, 4)
    wanted = dice_from_counts(
        [((predicted == c) & (expected == c)).sum() for c in classes],
        [(predicted == c).sum() for c in classes],
        [(expected == c).sum() for c in classes],
    )
    grid = Grid.from_spacing((6, 5, 4))
    volumes = Volume(predicted, grid, "label"), Volume(expected, grid, "label")
    rows = compare_label_maps(*volumes, LABELS)
    np.testing.assert_array_equal([row.dice for row in rows], wanted)
    np.testing.assert_array_equal(label_dice(*volumes, LABELS), wanted)
    counts = np.zeros((4, 4), np.int64)  # reference value, then all voxels and those predicted as each label
    np.add.at(counts, (expected.ravel(), predicted.ravel()), 1)
    counts[:, 0] = counts.sum(1)
    np.testing.assert_array_equal(dice_of(torch.from_numpy(counts), LabelSets(LABELS)), wanted)
