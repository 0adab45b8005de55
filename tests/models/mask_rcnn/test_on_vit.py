"""The neck of a vision transformer without a feature pyramid."""

from __future__ import annotations

import torch

from medseg.models.mask_rcnn.on_vit import ChannelMapper


@torch.no_grad()
def test_maps_are_projected_with_relu_and_the_coarsest_is_pooled():
    torch.manual_seed(0)
    mapper = ChannelMapper(4, 3)
    maps = {str(i): torch.randn(1, 4, *size) for i, size in enumerate([(8, 8), (4, 4), (2, 2), (5, 4)])}
    found = mapper(maps)
    assert list(found) == ["0", "1", "2", "3", "pool"]
    for i, (name, x) in enumerate(maps.items()):
        weight, bias = mapper.projections[i].weight[:, :, 0, 0], mapper.projections[i].bias
        wanted = (torch.einsum("oc,ncxy->noxy", weight, x) + bias[:, None, None]).clamp(min=0)
        assert (found[name] - wanted).abs().max() < 1e-5
    assert torch.equal(found["pool"][0, :, 1, 0], found["3"][0, :, 2:4, :2].amax(dim=(1, 2)))
    assert found["pool"].shape[2:] == (2, 2)
    single = mapper({name: x[:, :, :1, :1] for name, x in maps.items()})
    assert torch.equal(single["pool"], single["3"])
