"""Slices that a thread prepares, and windows that are known to be empty from the slices."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.inference.sliding.read_ahead import ReadAhead
from medseg.inference.sliding.slab import SlabStorage
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.windows import SlidingWindow, window_slices, windows_to_predict
from tests.helpers.sliding import window_cases

CPU = torch.device("cpu")


class Recorded(InMemoryImage):
    """An image that remembers what was read in which thread."""

    def __init__(self, image):
        super().__init__(image)
        self.read = []

    def slices(self, first, last, columns=None):
        self.read.append((first, last, threading.current_thread().name))
        return super().slices(first, last, columns)


@settings(max_examples=40, deadline=None)
@given(case=window_cases(), batch=st.integers(1, 3), limit=st.sampled_from((None, 0.0, 2.0)))
def test_logits_do_not_depend_on_who_reads_the_slices(case, batch, limit):
    shape, window, overlap, blend, mirror = case
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    limits = None if limit is None else (limit,)

    def run(read_ahead):
        recorded = Recorded(image)
        storage = SlabStorage(read_ahead=read_ahead)
        sliding = SlidingWindow(window, overlap, batch, blend, mirror, empty_up_to=limits, storage=storage)
        logits = [block.clone() for block in window_slices(recorded, lambda x: 2 * x, sliding)]
        return torch.cat(logits), recorded.read

    found, read = run(True)
    expected, directly = run(False)
    assert torch.equal(found, expected)
    assert [one[:2] for one in read] == [one[:2] for one in directly]
    assert all(name.startswith("read-ahead") for *_, name in read)


@settings(max_examples=60, deadline=None)
@given(case=window_cases(), channels=st.integers(1, 2), limit=st.floats(-1, 3))
def test_a_window_is_empty_if_no_voxel_of_it_exceeds_the_limits(case, channels, limit):
    shape, window, overlap, *_ = case
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(channels, *shape)).astype(np.float32))
    limits = (limit, 1.5)[:channels]
    sliding = SlidingWindow(window, overlap, empty_up_to=limits)
    layout = sliding.layout(shape)
    pads = [(b, n - s - b) for n, s, b in zip(layout.sizes, shape, layout.before, strict=True)]
    padded = torch.nn.functional.pad(image, [edge for pair in reversed(pads) for edge in pair])
    full = [
        box
        for box in layout.boxes
        if any(float(channel[box].max()) > limit for channel, limit in zip(padded, limits, strict=True))
    ]
    assert windows_to_predict(InMemoryImage(image), sliding) == len(full)


def test_a_window_with_nan_is_not_empty():
    image = torch.zeros(1, 4, 4)
    image[0, 1, 1] = torch.nan
    assert windows_to_predict(InMemoryImage(image), SlidingWindow((2, 2), 0, empty_up_to=(0.0,))) == 1


def test_the_next_slices_are_prepared_before_they_are_requested():
    prepared = threading.Event()

    class Image(InMemoryImage):
        def slices(self, first, last, columns=None):
            if first == 2:
                prepared.set()
            return super().slices(first, last, columns)

    image = torch.arange(6.0).reshape(1, 6)
    with ReadAhead(Image(image), [(0, 2, None), (2, 6, None)], CPU) as ahead:
        assert torch.equal(ahead.slices(0, 2), image[:, :2])
        assert prepared.wait(60)
        assert torch.equal(ahead.slices(2, 6), image[:, 2:])


def test_a_failure_reaches_the_reader_and_an_early_end_stops_the_thread():
    class Broken(InMemoryImage):
        def slices(self, first, last, columns=None):
            raise MemoryError("no room for slices")

    requests = [(0, 2, None), (2, 4, None)]
    with (
        pytest.raises(MemoryError, match="no room"),
        ReadAhead(Broken(torch.zeros(1, 4)), requests, CPU) as a,
    ):
        a.slices(0, 2)
    sliding = SlidingWindow((2,), storage=SlabStorage(read_ahead=True))
    blocks = window_slices(InMemoryImage(torch.zeros(1, 40)), lambda x: x, sliding)
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
