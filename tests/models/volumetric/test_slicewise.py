from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError
from medseg.models import SliceWise, build_model

SIZE = (7, 6, 9)


def flat_model(**options):
    torch.manual_seed(0)
    return build_model("unet_2d", in_channels=2, num_classes=3, channels=[4, 8, 8], **options).eval()


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_slice_equals_the_2d_model(axis, batch_size):
    flat = flat_model()
    volume = torch.randn(2, 2, *SIZE)
    model = SliceWise(flat, SliceView(axis=axis), batch_size=batch_size)
    logits = model(volume)
    assert logits.shape == (2, 3, *SIZE)
    for i in range(SIZE[axis]):
        wanted = flat(volume.select(2 + axis, i))
        assert (logits.select(2 + axis, i) - wanted).abs().max() < 1e-4


def test_attributes_and_criterion_follow_the_2d_model():
    model = SliceWise(flat_model(), SliceView(axis=1))
    assert (model.spatial_dims, model.in_channels, model.num_classes) == (3, 2, 3)
    assert model.divisor == (4, 1, 4)
    model.criterion = F.cross_entropy
    assert model.model.criterion is F.cross_entropy
    assert model.criterion is F.cross_entropy


@pytest.mark.parametrize("batch_size", [4, None])
def test_loss_is_the_mean_over_slices_with_deep_supervision(batch_size):
    flat = flat_model(deep_supervision=True)
    model = SliceWise(flat, batch_size=batch_size)
    model.criterion = lambda logits, label: F.cross_entropy(logits, label[:, 0])
    volume, label = torch.randn(2, 2, *SIZE), torch.randint(0, 3, (2, 1, *SIZE))
    losses = model.losses(volume, label)
    each = [flat.losses(volume[..., i], label[..., i])["loss"] for i in range(SIZE[2])]
    assert losses["loss"].item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_invalid_models_and_images_raise():
    with pytest.raises(ModelError, match="spatial_dims: found 3, expected 2"):
        SliceWise(build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8]))
    with pytest.raises(ModelError, match="batch_size: found 0"):
        SliceWise(flat_model(), batch_size=0)
    with pytest.raises(ModelError, match="expected \\(n c x y z\\)"):
        SliceWise(flat_model())(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ModelError, match="no criterion"):
        SliceWise(flat_model()).losses(torch.zeros(1, 2, *SIZE), torch.zeros(1, 1, *SIZE, dtype=torch.long))
