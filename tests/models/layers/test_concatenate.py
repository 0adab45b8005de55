"""Transposed convolution as a matrix product that is written next to the skip."""

from __future__ import annotations

import pytest
import torch

import medseg
from medseg.models.layers.concatenate import can_upsample_into, upsample_into
from medseg.models.layers.convs import conv_transpose_nd
from medseg.models.unet import network


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "stride"), [((3, 4, 5), (2, 2, 2)), ((3, 4, 5), (1, 2, 3)), ((4, 3), (2, 2))]
)
def test_result_is_that_of_convolution_and_concatenation(size, stride, bias):
    conv = conv_transpose_nd(len(size), 3, 5, stride, bias=bias)
    lower = torch.randn(2, 3, *size)
    skip = torch.randn(2, 4, *(n * s for n, s in zip(size, stride, strict=True)))
    expected = torch.cat([conv(lower), skip], 1)
    with torch.inference_mode():
        found = upsample_into(conv, lower, skip)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip_merge", ["concat", "add"])
def test_networks_use_it_where_it_is_possible(monkeypatch, skip_merge):
    model = medseg.build_model(
        "unet_3d", in_channels=1, num_classes=2, channels=[4, 8], skip_merge=skip_merge
    ).eval()
    image, used = torch.randn(1, 1, 8, 8, 8), []

    def as_on_a_device(conv, lower, skip):
        used.append(conv)
        return True

    with torch.inference_mode():
        expected = model(image)
        assert not can_upsample_into(model.decoder[0].up.conv, image, image)
        monkeypatch.setattr(network, "can_upsample_into", as_on_a_device)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert len(used) == (skip_merge == "concat")
