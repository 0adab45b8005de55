"""Contours of masks and masks of contours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from skimage.draw import polygon2mask

from medseg.io.dicom.segmentations.planar_contours import contours_mask, mask_contours


@settings(deadline=None, max_examples=100)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.booleans()))
def test_filling_restores_any_mask(mask: np.ndarray) -> None:
    shape = (mask.shape[0], mask.shape[1])
    contours = mask_contours(mask)
    assert np.array_equal(contours_mask(contours, shape), mask)
    assert len(contours) == ndimage.label(mask)[1]


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
def test_filling_restores_dense_and_sparse_masks(share: float) -> None:
    mask = np.random.default_rng(3).random((60, 50)) < share
    assert np.array_equal(contours_mask(mask_contours(mask), (60, 50)), mask)


def test_rings_within_rings() -> None:
    x, y = np.indices((41, 41)) - 20
    mask = (np.hypot(x, y) // 4 % 2) == 0
    contours = mask_contours(mask)
    assert np.array_equal(contours_mask(contours, (41, 41)), mask)
    # each island is one contour: another library fills it to the same pixels, keyholes included
    filled = [polygon2mask((41, 41), contour) for contour in contours]
    assert np.array_equal(np.sum(filled, axis=0), mask)


def test_square_has_the_corners_of_its_pixels_cut_off() -> None:
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:5] = True
    (contour,) = mask_contours(mask)
    assert len(contour) == 8
    assert contour.min(axis=0).tolist() == [1.5, 1.5]
    assert contour.max(axis=0).tolist() == [3.5, 4.5]


def test_contours_outside_of_the_slice_are_cut_off() -> None:
    square = np.array([[-3.0, -3.0], [2.5, -3.0], [2.5, 9.0], [-3.0, 9.0]])
    expected = np.zeros((5, 4), bool)
    expected[:3] = True
    assert np.array_equal(contours_mask([square], (5, 4)), expected)
    assert not contours_mask([square + 100], (5, 4)).any()
    assert not mask_contours(np.zeros((3, 3), bool))
