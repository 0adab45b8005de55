"""Values that Metrics Reloaded publishes for figures of its papers.

Source: ``test/test_metrics/test_pairwise_measures.py`` of github.com/Project-MONAI/MetricsReloaded (Apache-2.0), whose arrays are
those of figures in Reinke et al. 2024, Understanding metric-related pitfalls in image analysis validation (arXiv:2302.01790),
and whose tolerances are kept.
"""

from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation.entry_points import evaluate
from medseg.evaluation.label_maps.boundary_iou import boundary_iou
from medseg.evaluation.label_maps.centerline_dice import centerline_dice
from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.surface import surface_distances
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def image(shape: tuple[int, int], *boxes: tuple[slice | int, ...]) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    for box in boxes:
        found[box] = 1
    return found


def measured(prediction: np.ndarray, reference: np.ndarray, tolerance_mm: float = 1.0) -> LabelMetrics:
    maps = [
        Volume(a[None, ..., None], Grid.from_spacing((*a.shape, 1), (1, 1, 1)), "label")
        for a in (prediction, reference)
    ]
    (row,) = evaluate(*maps, tolerance_mm=tolerance_mm).rows
    return row


SQUARE = image((11, 11), np.s_[3:8, 3:8])
CROSS = image((11, 11), np.s_[3:8, 3:8], np.s_[5, 1:10], np.s_[1:10, 5])


def test_a_square_with_a_cross() -> None:
    row = measured(CROSS, SQUARE)
    assert row.dice == pytest.approx(0.862, abs=0.001)
    assert row.iou == pytest.approx(0.76, abs=0.01)
    assert row.assd_mm == pytest.approx(0.44, abs=0.01)
    assert row.masd_mm == pytest.approx(0.425, abs=0.001)
    assert row.surface_dice == pytest.approx(0.89, abs=0.01)
    assert measured(CROSS, SQUARE, 2.0).surface_dice == 1


def test_a_missed_pixel_far_away() -> None:
    found, expected = image((14, 14), np.s_[9:12, 9:12]), image((14, 14), np.s_[9:12, 9:12], np.s_[1, 1])
    distances = surface_distances(found.astype(bool), expected.astype(bool), (1, 1))
    assert distances.hausdorff(100) == pytest.approx(11.31, abs=0.01)
    assert measured(found, expected).hd95_mm == pytest.approx(6.79, abs=0.01)


def test_sensitivity_and_positive_predictive_value() -> None:
    """Rows of a line: inside both, missed, false, outside both."""

    def line(both: int, missed: int, false: int, outside: int) -> LabelMetrics:
        prediction = np.repeat(np.array([1, 0, 1, 0], np.uint8), (both, missed, false, outside))
        reference = np.repeat(np.array([1, 1, 0, 0], np.uint8), (both, missed, false, outside))
        return measured(prediction[:, None], reference[:, None])

    assert line(40, 30, 1, 0).sensitivity == pytest.approx(0.57, abs=0.01)
    assert line(45, 5, 10, 40).precision == pytest.approx(0.82, abs=0.01)
    assert line(81, 9, 2, 8).precision == pytest.approx(0.98, abs=0.01)


def test_large_structure_with_a_missed_pixel() -> None:
    reference = image((11, 11), np.s_[2:5, 2:9], np.s_[5:9, 2:6])
    prediction = reference.copy()
    prediction[8, 2] = 0
    assert measured(prediction, reference).dice == pytest.approx(0.986, abs=0.001)


def test_boundary_iou_of_a_missed_row() -> None:
    """Their boundary is one pixel wide."""
    pair = MaskPair(
        image((22, 22), np.s_[3:21, 2:21]).astype(bool)[..., None],
        image((22, 22), np.s_[2:21, 2:21]).astype(bool)[..., None],
        np.ones(3),
        1.0,
    )
    assert round(boundary_iou(pair, 1.0), 1) == 0.6


@pytest.mark.parametrize(("first_row", "expected"), [(2, 0.86), (3, 0.67)])
def test_cldice_of_a_small_tube(first_row: int, expected: float) -> None:
    reference = image((14, 14), np.s_[1:4, 1:2], np.s_[3:4, 1:4])
    prediction = image((14, 14), np.s_[first_row:4, 1:2], np.s_[3:4, 1:4])
    pair = MaskPair(prediction.astype(bool)[..., None], reference.astype(bool)[..., None], np.ones(3), 1.0)
    assert centerline_dice(pair) == pytest.approx(expected, abs=0.01)
