from __future__ import annotations

import pytest
import torch

from medseg.errors import ModelError
from medseg.models import SliceWise, build_model, list_models, summarize

FAMILY = list_models("*unet_?d")


@pytest.mark.parametrize("name", FAMILY)
def test_parts_sum_to_the_total(name):
    model = build_model(name, in_channels=1, num_classes=2, channels=[4, 8, 8])
    shape = (1, *(11, 12, 13)[: model.spatial_dims])
    summary = summarize(model, shape)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.parameters == sum(part.parameters for part in summary.parts)
    assert summary.multiply_adds == sum(part.multiply_adds for part in summary.parts)
    assert summary.output_shape == (2, *shape[1:])
    assert model.training


def test_multiply_adds_of_convolutions_are_counted():
    model = build_model("unet_2d", in_channels=3, num_classes=2, channels=[4, 8], num_blocks=1)
    parts = {part.name: part for part in summarize(model, (3, 16, 8)).parts}
    full, half = 16 * 8, 8 * 4
    assert parts["encoder.0"].multiply_adds == full * 4 * 3 * 9
    assert parts["encoder.1"].multiply_adds == half * 8 * 4 * 9
    assert parts["decoder.0"].multiply_adds == full * 4 * 8 + full * 4 * 8 * 9
    assert parts["head"].multiply_adds == full * 2 * 4
    assert parts["encoder.1"].shape == (8, 8, 4)
    assert parts["decoder.0"].shape == (4, 16, 8)


def test_large_volume_needs_no_memory_and_keeps_the_model():
    model = build_model("unet_3d", in_channels=1, num_classes=3, channels=[4, 8], norm="batch").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summary = summarize(model, (1, 1024, 1024, 1024))  # 16 GiB per stage, were it real
    assert summary.output_shape == (3, 1024, 1024, 1024)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_table_shows_rows_and_totals():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8, 8], deep_supervision=True)
    text = str(summarize(model, (1, 32, 32)))
    assert "UNet2d" in text
    assert f"{sum(p.numel() for p in model.parameters()):,}" in text
    assert "8×16×16" in text
    assert [line for line in text.splitlines() if line.startswith("aux_heads.0") and "–" in line]


def test_slice_wise_models_count_all_slices():
    flat = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8])
    one = summarize(flat, (1, 16, 16)).multiply_adds
    assert summarize(SliceWise(flat, batch_size=2), (1, 16, 16, 5)).multiply_adds == 5 * one


def test_invalid_shape_raises():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8])
    with pytest.raises(ModelError, match="image channels: found 3"):
        summarize(model, (3, 16, 16))
