"""Sliding windows: where they lie, how they are weighed, and that nothing is lost or invented."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ConfigError
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.windows import (
    SlidingWindow,
    predict_windows,
    window_positions,
    window_slices,
    window_starts,
    window_weights,
)
from tests.helpers.sliding import dense_logits, window_cases


@settings(max_examples=50, deadline=None)
@given(case=window_cases(), batch=st.integers(1, 5), channels=st.integers(1, 2))
def test_an_identity_network_gives_the_image_back(case, batch, channels):
    shape, window, overlap, blend, mirror = case
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32))
    seen = []
    result = predict_windows(
        image, lambda x: x, window, overlap=overlap, batch_size=batch, blend=blend, mirror_axes=mirror,
        progress=lambda done, total, what: seen.append((done, total)),
    )  # fmt: skip
    assert result.shape == image.shape
    assert float((result - image).abs().max()) <= 1e-5
    total = len(
        list(window_positions([max(s, w) for s, w in zip(shape, window, strict=True)], window, overlap))
    )
    assert seen == [(min(start + batch, total), total) for start in range(0, total, batch)]


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 300), window=st.integers(1, 96), overlap=st.floats(0, 0.95))
def test_starts_cover_the_axis_once_and_follow_the_rule(size, window, overlap):
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - window)
    steps = np.diff(starts)
    assert (steps >= 1).all()  # no window twice
    assert (steps <= max(1, np.ceil(window * (1 - overlap)))).all()


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (110, 64, 0.5, [0, 23, 46]),
        (65, 64, 0.5, [0, 1]),
        (64, 64, 0.5, [0]),
        (10, 64, 0.5, [0]),
        (128, 64, 0.0, [0, 64]),
        (129, 64, 0.0, [0, 32, 65]),
        (20, 10, 0.9, list(range(11))),  # (1 - 0.9) * 10 is below 1 in floats
        (5, 1, 0.5, [0, 1, 2, 3, 4]),  # slices of a 2D model, each once
    ],
)
def test_starts_by_hand(size, window, overlap, expected):
    assert window_starts(size, window, overlap) == expected


def nnunet_starts(size: int, tile: int, step: float) -> list[int]:
    """The published rule: evenly spread steps of at most `step` tiles (Isensee et al. 2021)."""
    count = int(np.ceil((size - tile) / (tile * step))) + 1
    actual = (size - tile) / (count - 1) if count > 1 else 0
    return [int(np.round(actual * i)) for i in range(count)]


def test_starts_equal_the_published_rule():
    for size, tile, step in itertools.product(range(64, 200, 7), (16, 40, 64), (0.25, 0.5, 0.75, 1.0)):
        assert window_starts(size, tile, 1 - step) == nnunet_starts(size, tile, step), (size, tile, step)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlap_out_of_range(overlap):
    with pytest.raises(ConfigError, match="overlap: found"):
        predict_windows(torch.zeros(1, 8), lambda x: x, (4,), overlap=overlap)


@pytest.mark.parametrize("window", [(4,), (4, 4, 4), (4, 0)])
def test_window_that_does_not_fit_the_image(window):
    with pytest.raises(ConfigError, match="expected 2 positive sizes"):
        predict_windows(torch.zeros(1, 8, 8), lambda x: x, window)


def test_equals_monai_where_positions_and_weights_coincide():
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(4, 3, 3, padding=1)
    )
    image = torch.randn(2, 24, 16, 20)
    with torch.no_grad():
        expected = sliding_window_inference(image[None], (8, 8, 4), 2, network, overlap=0.5, mode="constant")
        result = predict_windows(image, network, (8, 8, 4), overlap=0.5, batch_size=3, blend="constant")
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(result, expected[0], atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(case=window_cases(), classes=st.integers(2, 4), seed=st.integers(0, 99))
def test_the_rolling_slab_equals_the_definition_bit_for_bit(case, classes, seed):
    shape, window, overlap, blend, mirror = case
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32))
    mixing = torch.from_numpy(rng.normal(size=(classes, *window)).astype(np.float32))

    def network(batch):  # depends on the place in the window, and is computed voxel by voxel
        return torch.tanh(batch * mixing + mixing)

    options = {"overlap": overlap, "blend": blend, "mirror_axes": mirror}
    expected = dense_logits(image, network, window, **options)
    for batch_size in (1, 3):
        result = predict_windows(image, network, window, batch_size=batch_size, **options)
        assert torch.equal(result, expected)


def test_the_slab_is_one_window_high_however_long_the_image_is():
    def blocks(length):
        network = torch.nn.Conv3d(1, 3, 1)
        image = torch.zeros(1, length, 6, 7)
        with torch.no_grad():
            yield from window_slices(InMemoryImage(image), network, SlidingWindow((8, 4, 4)))

    for length in (32, 320):
        sizes = [(len(b), b.untyped_storage().nbytes()) for b in blocks(length)]
        assert sum(size for size, _ in sizes) == length
        assert {held for _, held in sizes} == {8 * 6 * 7 * 3 * 4}


def test_mirroring_is_the_mean_over_all_flips():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(1, 6, 8)
    with torch.no_grad():
        result = predict_windows(image, network, (6, 8), mirror_axes=(0, 1))
        flips = [(), (1,), (2,), (1, 2)]
        each = [network(image.flip(f)[None])[0].flip(f) for f in flips]
    torch.testing.assert_close(result, torch.stack(each).mean(0), atol=1e-6, rtol=0)


def test_the_middle_of_a_window_counts_most():
    """A network that tells its own position shows which window a voxel was taken from."""
    ramp = torch.arange(8.0)
    result = predict_windows(torch.zeros(1, 12), ramp.expand_as, (8,), overlap=0.5)[0]
    assert result[0] == 0  # only the first window is there
    assert result[11] == 7
    assert abs(float(result[4]) - 4) < 0.5  # the centre of the first window, the border of the second


def test_an_image_smaller_than_the_window_is_padded_with_zeros_evenly():
    seen = []

    def network(batch):
        seen.append(batch.clone())
        return batch

    image = torch.ones(1, 3, 4)
    assert torch.equal(predict_windows(image, network, (6, 4)), image)
    (batch,) = seen
    assert batch.shape == (1, 1, 6, 4)
    assert batch[0, 0, :, 0].tolist() == [0, 1, 1, 1, 0, 0]


def test_half_precision_logits_are_summed_in_float32():
    result = predict_windows(torch.full((1, 40), 1 / 3), lambda x: x.to(torch.bfloat16), (8,), overlap=0.9)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((1, 40), float(torch.tensor(1 / 3).bfloat16())))


def test_weights_are_positive_symmetric_about_the_centre_voxel_and_at_most_1():
    weights = window_weights((9, 5, 1))
    assert weights.shape == (9, 5, 1)
    assert weights.dtype == torch.float32
    assert float(weights.max()) == float(weights[4, 2, 0]) == 1
    assert float(weights.min()) > 0
    assert torch.equal(weights, weights.flip(0, 1))
    assert torch.equal(window_weights((4, 4), "constant"), torch.ones(4, 4))


def test_weights_equal_golden_values_up_to_scale(shared_reference):
    import json

    golden = json.loads((shared_reference / "numeric_golden.json").read_text())["gaussian"]
    for case in golden["cases"]:
        tile = tuple(case["tile"])
        weights = window_weights(tile).double().numpy() * golden["peak"]
        centre = tuple(size // 2 for size in tile)
        edge = (0, *centre[1:])
        assert weights[centre] == pytest.approx(case["centre_f64"])
        assert weights[edge] == pytest.approx(case["edge_centre_f64"], rel=1e-3)
        # nnU-Net rounds to float16, which decides along the edges of an image.
        assert weights.ravel()[0] == pytest.approx(case["corner_first_f16"], rel=1e-5)
        assert weights.min() == pytest.approx(case["min_f16"], rel=1e-5)
        assert weights.sum() == pytest.approx(case["sum_f16_as_f64"], rel=1e-6)
