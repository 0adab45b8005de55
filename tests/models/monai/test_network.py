"""MONAI's networks as models of the catalog."""

from __future__ import annotations

import pytest
import torch

from medseg.errors import ConfigError, ModelError
from medseg.models import MODELS, build_model, list_models, parse_options
from medseg.models.layers.memory_format import channels_last_format

pytestmark = pytest.mark.slow

NAMES = ["monai_attention_unet_2d", "monai_attention_unet_3d", "monai_unet_2d", "monai_unet_3d"]


def test_names_are_listed():
    assert list_models("monai_*") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_size_of_the_image(name):
    torch.manual_seed(0)
    dims = MODELS.get(name).dims
    model = build_model(name, in_channels=2, num_classes=3, channels=[4, 6, 8]).eval()
    assert (model.spatial_dims, model.in_channels, model.num_classes) == (dims, 2, 3)
    assert model.divisor == (4,) * dims
    assert type(model.network).__module__.startswith("monai.")
    size = (9, 8, 11)[:dims]
    image = torch.randn(2, 2, *size)
    grown = image
    for axis, n in enumerate((12, 8, 12)[:dims], start=2):
        last = grown.narrow(axis, grown.shape[axis] - 1, 1)
        grown = torch.cat([grown, *[last] * (n - grown.shape[axis])], dim=axis)
    with torch.no_grad():
        logits = model(image)
        expected = model.network(grown)[(..., *(slice(n) for n in size))]
        assert torch.equal(logits, expected)
        model.to(memory_format=channels_last_format(dims))
        assert torch.allclose(model(image), logits, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loss_decreases(name):
    torch.manual_seed(0)
    model = build_model(name, in_channels=1, num_classes=2, channels=[4, 8])
    dims = model.spatial_dims
    image = torch.randn(2, 1, *(8,) * dims)
    label = (image > 0).long()
    model.criterion = lambda logits, label: torch.nn.functional.cross_entropy(logits, label[:, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = model.losses(image, label)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": [4]}, "channels"),
        ({"strides": [2, 2, 2]}, "strides has 3 entries, expected 4: one less than channels"),
        ({"strides": [[2, 2], 2, 2, 2]}, r"strides\.0: found \[2, 2\], expected one number or 3"),
        ({"kernel_size": 4}, "expected an odd number"),
        ({"adn_ordering": "NAN"}, "each of the letters N, D and A at most once"),
        ({"adn_ordering": "NX"}, "adn_ordering"),
        ({"act": "relus"}, "act"),
    ],
)
def test_invalid_options_raise(options, words):
    with pytest.raises(ConfigError, match=words):
        parse_options("monai_unet_3d", options)


def test_too_small_image_raises():
    model = build_model("monai_unet_2d", in_channels=1, num_classes=2, channels=[4, 8, 8])
    with pytest.raises(ModelError, match=r"single value on the deepest map: image size: found \(3, 4\)"):
        model(torch.randn(1, 1, 3, 4))
    with pytest.raises(ModelError, match="image channels: found 2, expected 1"):
        model(torch.randn(1, 2, 8, 8))
