"""Batches on the device of the network."""

from __future__ import annotations

import pytest
import torch

from medseg.train.to_device import ToDevice


@pytest.mark.parametrize("dims", [2, 3])
def test_images_get_the_memory_format_and_maps_their_type(dims):
    shape = (2, 3, 5, 4, 6)[: dims + 2]
    batch = {
        "image": torch.randn(shape),
        "label": torch.randint(0, 200, (2, 1, *shape[2:])).to(torch.uint8),
        "instances": torch.randint(0, 70_000, (2, 1, *shape[2:])).to(torch.int32),
    }
    moved = ToDevice(None, torch.device("cpu"), dims)(batch)
    assert list(moved) == list(batch)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert moved["image"].is_contiguous(memory_format=layout)
    assert torch.equal(moved["image"], batch["image"])
    for name in ("label", "instances"):
        assert moved[name].dtype == torch.int64
        assert torch.equal(moved[name], batch[name].long())
