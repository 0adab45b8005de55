"""The box around a body in a CT."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.inference.sliding.skip_empty import body_box
from medseg.volumes.grid import Grid

GRID = Grid.from_spacing((40, 40, 20), (5.0, 5.0, 5.0))


def scan(*bodies: tuple[slice, slice, slice]) -> np.ndarray:
    data = np.full((1, *GRID.shape), -1000.0, np.float32)
    for body in bodies:
        data[(0, *body)] = 40
    return data


@pytest.mark.parametrize("bodies", [(), ((slice(3, 4), slice(3, 4), slice(3, 4)),)])
def test_air_and_specks_are_no_body(bodies):
    assert body_box(scan(*bodies), GRID) is None


def test_the_box_holds_the_body_and_its_margin_and_no_speck():
    body = (slice(12, 30), slice(14, 28), slice(5, 15))
    start, shape = body_box(scan(body, (slice(0, 1), slice(0, 1), slice(0, 1))), GRID)
    stop = [begin + size for begin, size in zip(start, shape, strict=True)]
    assert all(begin <= side.start for begin, side in zip(start, body, strict=True))
    assert all(end >= side.stop for end, side in zip(stop, body, strict=True))
    assert start[0] > 0
    assert stop[0] < 40


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_a_few_thin_slices_show_a_body(slices):
    grid = Grid.from_spacing((200, 200, slices), (0.5, 0.5, 0.5))
    data = np.full((1, *grid.shape), -1000.0, np.float32)
    data[0, 70:180, 70:180] = 40
    start, shape = body_box(data, grid)
    assert (start[2], shape[2]) == (0, slices)
    for axis in (0, 1):
        assert 0 < start[axis] <= 70
        assert start[axis] + shape[axis] >= 180
