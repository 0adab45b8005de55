"""The engine under a budget: the same label map in any number of bands, and refusals that tell what would do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.datasets.phantom import phantom_case
from medseg.errors import ConfigError, ModelError
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.slab import SlabStorage
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.windows import SlidingWindow, predict_windows, window_slices
from tests.helpers.sliding import run_in_bands, window_cases


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "spacing"), [(2, None), (3, None), (3, (26.0, 13.0, 30.0))])
def test_labels_do_not_depend_on_the_number_of_bands(make_predictor, dims, spacing):
    predictor = make_predictor(dims, spacing=spacing, mirror_axes=(0,))
    # A slice is a window of its own in 2D, so fewer of them are enough.
    shape, voxel = ((9, 12, 6), (30.0, 22.0, 40.0)) if dims == 2 else ((14, 12, 10), (20.0, 22.0, 24.0))
    image, _ = phantom_case(0, "ct", shape, voxel)
    expected = predictor(image).data
    assert len(np.unique(expected)) > 2
    for bands in (3, 14):
        assert np.array_equal(run_in_bands(predictor, image, bands), expected), bands


@settings(max_examples=30, deadline=None)
@given(case=window_cases(), data=st.data())
def test_columns_are_those_of_the_whole_bit_for_bit(case, data):
    shape, window, overlap, blend, mirror = case
    shape, window = ((*shape, 5, 6)[:3], (*window, 3, 4)[:3])
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32))
    mixing = torch.from_numpy(rng.normal(size=(2, *window)).astype(np.float32))
    sliding = SlidingWindow(window, overlap, 2, blend, mirror)
    start = data.draw(st.integers(0, shape[1] - 1))
    stop = data.draw(st.integers(start + 1, shape[1]))

    def network(batch):
        return torch.tanh(batch * mixing)

    def run(columns):
        blocks = window_slices(InMemoryImage(image), network, sliding, columns=columns)
        return torch.cat([block.clone() for block in blocks])

    assert torch.equal(run(slice(start, stop)), run(None)[:, start:stop])


@pytest.mark.parametrize("window", [(8, 6, 7), (4, 4, 4)])
def test_float16_sums_are_as_good_as_float16_can_be(window):
    image = torch.randn(1, 20, 13, 11, generator=torch.Generator().manual_seed(0))
    exact = predict_windows(image, lambda x: torch.cat([x, 30 * x], 1), window)
    sliding = SlidingWindow(window, storage=SlabStorage(torch.float16))
    blocks = window_slices(InMemoryImage(image), lambda x: torch.cat([x, 30 * x], 1), sliding)
    half = torch.cat([block.clone() for block in blocks]).movedim(-1, 0)
    assert half.dtype == torch.float16
    # The image comes back: also in corners, where a window's weight is below the least float16.
    torch.testing.assert_close(half.float(), exact, rtol=2e-3, atol=1e-3)


def test_logits_beyond_float16_raise(make_predictor):
    predictor = make_predictor()

    class Huge(torch.nn.Module):
        def forward(self, batch):
            return batch.abs().repeat(1, 4, 1, 1, 1) * 1e6 + 1e5

    predictor.network.volumetric = Huge()
    image, _ = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))
    with pytest.raises(ModelError, match="found NaN or infinity, expected finite numbers"):
        run_in_bands(predictor, image, 1, sums=torch.float16)


def test_a_budget_is_refused_before_the_network_sees_the_image(make_predictor):
    predictor = make_predictor()
    predictor.engine.__dict__["max_memory"] = 1000
    image, _ = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))
    with pytest.raises(ConfigError, match="expected at least"):
        predictor(image)


def test_empty_windows_are_background_without_running_the_network(make_predictor, make_volume):
    predictor = make_predictor(method="none", window=(4, 4, 4), overlap=0, crop=False)
    seen = []

    class Second(torch.nn.Module):
        def forward(self, batch):
            seen.append(len(batch))
            return torch.stack([torch.zeros_like(batch[:, 0]), torch.ones_like(batch[:, 0])], 1).repeat(
                1, 2, 1, 1, 1
            )

    predictor.network.volumetric = Second()
    volume = make_volume((12, 12, 12))
    data = np.zeros_like(volume.data, dtype=np.float32)
    data[:, 5, 6, 7] = 3  # in one window of 27
    labels = predictor(volume.with_data(data)).data[0]
    assert sum(seen) == 1
    assert (labels[4:8, 4:8, 4:8] == 5).all()
    assert (labels == 5).sum() == 64
    assert (predictor.with_settings(skip_empty=False)(volume.with_data(data)).data != 0).any()


def test_the_job_is_cut_into_bands_that_cover_it():
    from medseg.inference.sliding.to_file_grid import LinearWeights
    from medseg.volumes.resampling import AxisMap

    axis = LinearWeights.from_axis_map(AxisMap.resize(10, 23))
    prepared = PreparedPrediction(InMemoryImage(torch.zeros(1, 1, 10, 1)), None, (axis, axis, axis))  # type: ignore[arg-type]
    bands = prepared.bands(4, SlidingWindow((1, 10, 1)))
    assert [band.targets for band in bands] == [slice(0, 5), slice(5, 11), slice(11, 17), slice(17, 23)]
    assert bands[0].columns.start == 0
    assert bands[-1].columns.stop == 10


def test_bands_are_cut_where_windows_meet():
    from medseg.inference.sliding.to_file_grid import LinearWeights
    from medseg.volumes.resampling import AxisMap

    axis = LinearWeights.from_axis_map(AxisMap.resize(512, 512))
    prepared = PreparedPrediction(InMemoryImage(torch.zeros(1, 1, 512, 1)), None, (axis, axis, axis))  # type: ignore[arg-type]
    half = SlidingWindow((1, 128, 1), overlap=0.5)
    assert [band.targets.stop for band in prepared.bands(3, half)] == [192, 320, 512]
    assert [half.num_columns(512, band.columns) for band in prepared.bands(3, half)] == [3, 3, 3]
    beside = SlidingWindow((1, 128, 1), overlap=0)
    assert [band.targets.stop for band in prepared.bands(4, beside)] == [128, 256, 384, 512]
