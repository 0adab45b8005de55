"""Which label wins where interpolated labels meet."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.volumes.largest_share import LargestShare


def decide(nearest: int, **shares: float) -> int:
    decision = LargestShare(np.array([nearest]))
    for label, share in shares.items():
        decision.add(int(label[1:]), np.array([share]))
    return int(decision.labels[0])


def test_the_largest_share_wins_whatever_is_nearest():
    assert decide(1, l1=0.4, l2=0.6) == 2


@pytest.mark.parametrize(("nearest", "winner"), [(1, 1), (2, 2), (3, 1)])
def test_equal_shares_go_to_the_nearest_label_then_the_smallest(nearest: int, winner: int):
    assert decide(nearest, l1=0.4, l2=0.4, l3=0.2) == winner


@pytest.mark.parametrize(("dtype", "noise"), [(np.float64, 1e-12), (np.float32, 1e-7)])
def test_shares_are_equal_up_to_rounding(dtype: type, noise: float):
    decision = LargestShare(np.array([1]))
    decision.add(1, np.array([0.5 - noise], dtype))
    decision.add(2, np.array([0.5 + noise], dtype))
    assert decision.labels.tolist() == [1]


def test_a_share_may_cover_a_part_of_the_map():
    decision = LargestShare(np.zeros(4, np.uint8))
    decision.add(0, np.array([1.0, 0.2, 0.2, 1.0]))
    decision.add(5, np.array([0.8, 0.8]), (slice(1, 3),))
    assert decision.labels.tolist() == [0, 5, 5, 0]
    assert decision.labels.dtype == np.uint8
