"""Histograms give what numpy gives on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.data.preprocessing.histogram import Histogram, foreground_histograms, pool_histograms
from medseg.errors import DataError


def draw(seed: int, size: int = 5001) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, size).astype(np.float32)


def test_whole_numbers_are_counted_exactly():
    values = draw(0)
    found = Histogram.from_values(values)
    expected, counts = np.unique(values, return_counts=True)
    assert np.array_equal(found.values, expected)
    assert np.array_equal(found.counts, counts)


def test_statistics_of_one_case_are_those_of_numpy():
    values = draw(1)
    found = Histogram.from_values(values).intensities()
    assert found.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert found.std == pytest.approx(values.std(dtype=np.float64), rel=1e-12)
    assert (found.low, found.high) == (values.min(), values.max())
    wanted = np.percentile(values, [0.5, 50, 99.5], method="inverted_cdf")
    assert [found.percentile_00_5, found.median, found.percentile_99_5] == list(wanted)


def test_every_case_weighs_the_same():
    """As nnU-Net's equal draws from each case do: a case with ten times the voxels counts no more."""
    small, large = draw(2, 1000), (draw(3, 10_000) / 4 + 500).round()
    found = pool_histograms([Histogram.from_values(small), Histogram.from_values(large)])
    balanced = np.concatenate([np.repeat(small, 10), large]).astype(np.float64)
    assert found.mean == pytest.approx(balanced.mean(), rel=1e-9)
    assert found.std == pytest.approx(balanced.std(), rel=1e-9)
    wanted = np.percentile(balanced, [0.5, 50, 99.5], method="inverted_cdf")
    assert [found.percentile_00_5, found.median, found.percentile_99_5] == list(wanted)


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32, allow_subnormal=False),
        min_size=1,
        max_size=20,
    )
)
def test_other_values_are_off_by_at_most_one_in_8192(values):
    array = np.array(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        found = Histogram.from_values(array)
    assert found.counts.sum() == len(array)
    assert np.isfinite(found.values).all()
    for value in array.astype(np.float64):
        nearest = found.values.astype(np.float64)[np.abs(found.values.astype(np.float64) - value).argmin()]
        assert abs(nearest - value) <= abs(value) / 8192


def test_zeros_of_both_signs_are_one_value():
    assert Histogram.from_values(np.array([0.0, -0.0, 0.0], dtype=np.float32)).counts.tolist() == [3]


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 50),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    )
)
def test_a_packed_histogram_is_restored_without_loss(values):
    found = Histogram.from_values(values)
    again = Histogram.unpack(found.pack())
    assert np.array_equal(again.values.view(np.uint32), found.values.view(np.uint32))
    assert np.array_equal(again.counts, found.counts)
    assert (again.mean, again.variance, again.low, again.high) == (
        found.mean,
        found.variance,
        found.low,
        found.high,
    )


def test_the_histogram_of_a_ct_is_short_and_a_damaged_one_is_refused():
    packed = Histogram.from_values(draw(5, 200_000)).pack()
    assert len(packed) < 12_000
    with pytest.raises(ValueError, match=r"incorrect|invalid|incomplete"):
        Histogram.unpack(packed[:-40])


def test_intensities_beyond_float32_are_refused():
    image = np.full((1, 2, 2, 2), 1e39)
    with pytest.raises(DataError, match="case a: found intensities beyond 3e38"):
        foreground_histograms(image, np.ones((2, 2, 2), bool), "case a")
    assert foreground_histograms(image, np.zeros((2, 2, 2), bool), "case a") == ()
