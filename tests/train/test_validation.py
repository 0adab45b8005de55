"""The image that a validation adds to TensorBoard."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.inference.sliding.labelling import FiniteCheck, label_rule
from medseg.labels.label_table import Labels
from medseg.train.validation import predicted_classes, validation_image

LABELS = Labels.from_names({"background": 0, "organ": 1}, {"organ": (255, 0, 0)})


def test_panels_are_side_by_side_with_the_second_axis_upwards():
    image = torch.zeros(1, 1, 4, 6)
    image[0, 0, 3, 5] = 1  # the last voxel of both axes: right and up
    reference = torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    reference[0, 0, 0, 0] = 1
    figure = validation_image(image, reference, torch.zeros_like(reference), LABELS)
    assert figure.shape == (6, 12, 3)
    assert figure.dtype == np.uint8
    assert figure[0, 3].tolist() == [255, 255, 255]
    assert figure[5, 4].tolist() == [
        127,
        0,
        0,
    ]  # half image, half colour, at the lower left of the second panel
    assert figure[5, 8].tolist() == [0, 0, 0]


def test_a_volume_is_shown_in_the_slice_with_most_foreground_and_few_samples():
    image = torch.rand(6, 2, 5, 4, 3)
    reference = torch.zeros(6, 1, 5, 4, 3, dtype=torch.int64)
    reference[:, :, 1:3, 1:3, 2] = 1
    figure = validation_image(image, reference, reference, LABELS)
    assert figure.shape == (4 * 4, 3 * 5, 3)
    panels = figure.reshape(4, 4, 3, 5, 3)
    assert np.array_equal(panels[:, :, 1], panels[:, :, 2])
    assert (panels[:, :, 1] != panels[:, :, 0]).any(axis=-1).sum() == 4 * 4


@pytest.mark.parametrize("regions", [{}, {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}])
def test_validation_and_prediction_convert_logits_to_the_same_labels(regions):
    labels = Labels.from_names({"oedema": 1, "necrosis": 2, "enhancing": 3}).with_regions(regions)
    logits = torch.randn(2, labels.num_outputs, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    logits[0, :, 0] = 0  # a tie, or no region
    rule = label_rule(labels)
    predicted = rule.values[rule.classes(logits.movedim(1, -1), FiniteCheck()).numpy()]
    validated = labels.to_values(predicted_classes(logits, labels)[:, 0].numpy())
    np.testing.assert_array_equal(validated, predicted)
    assert len(np.unique(predicted)) == 4
