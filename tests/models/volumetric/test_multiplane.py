"""A 2D model on volumes: planes averaged, channels made, slices turned, instances found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError
from medseg.inference.instances.link_slices import link_slices
from medseg.models import MultiPlane, SliceWise, build_model
from medseg.models.base import Model
from medseg.models.volumetric.multiplane import as_volumetric

SIZE = (7, 6, 9)
RADIOLOGICAL = SliceSettings(radiological_view=True)


def flat_model(channels=2):
    torch.manual_seed(0)
    return build_model("unet_2d", in_channels=channels, num_classes=3, channels=[4, 8]).eval()


class Echo(Model):
    """Gives its image back as logits; every pixel over 0.5 is part of an instance of its value's class."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(spatial_dims=2, in_channels=channels, num_classes=channels, divisor=(2, 4))

    def forward(self, image):
        return image

    def instances(self, image):
        found = []
        for one in image[:, 0]:
            classes = [int(value) for value in one.unique() if value > 0.5]
            masks = (
                torch.stack([one == value for value in classes])
                if classes
                else torch.zeros(0, *one.shape) > 0
            )
            found.append(
                SimpleNamespace(
                    masks=masks, classes=torch.tensor(classes), scores=torch.ones(len(classes)) / 2
                )
            )
        return found


def test_logits_are_the_mean_over_three_planes():
    flat, volume = flat_model(), torch.randn(2, 2, *SIZE)
    planes = [SliceWise(flat, SliceView(axis=axis)) for axis in (0, 1, 2)]
    model = MultiPlane(planes)
    expected = sum(plane(volume) for plane in planes) / 3
    torch.testing.assert_close(model(volume), expected)
    assert not torch.allclose(expected, planes[2](volume), atol=1e-3)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in flat.parameters())
    assert (model.spatial_dims, model.in_channels, model.num_classes, model.divisor) == (3, 2, 3, (2, 2, 2))


def test_losses_are_the_mean_over_planes():
    planes = [SliceWise(flat_model(), SliceView(axis=axis)) for axis in (0, 2)]
    model = MultiPlane(planes)
    model.criterion = lambda logits, label: F.cross_entropy(logits, label[:, 0])
    assert planes[1].model.criterion is not None
    assert model.criterion is planes[0].model.criterion
    volume, label = torch.randn(1, 2, *SIZE), torch.randint(0, 3, (1, 1, *SIZE))
    each = [plane.losses(volume, label)["loss"] for plane in planes]
    torch.testing.assert_close(model.losses(volume, label)["loss"], sum(each) / 2)


def test_repeated_plane_raises():
    with pytest.raises(ModelError, match=r"axes: found \[1, 1\], expected at least one, each once"):
        MultiPlane([SliceWise(flat_model(), SliceView(axis=1))] * 2)
    with pytest.raises(ModelError, match=r"axes: found \[\]"):
        MultiPlane([])


def test_on_volumes_follows_the_settings():
    flat, volume = flat_model(), torch.randn(1, 2, *SIZE)
    plain = as_volumetric(flat, SliceView(SliceSettings(), axis=1))
    assert torch.equal(plain(volume), SliceWise(flat, SliceView(axis=1))(volume))
    solid = build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
    assert as_volumetric(solid, SliceView(SliceSettings(), axis=2)) is solid
    planes = as_volumetric(flat, SliceView(SliceSettings(planes=(0, 1, 2)), axis=2))
    assert isinstance(planes, MultiPlane)
    few = as_volumetric(flat, SliceView(SliceSettings(batch_size=2), axis=2))
    torch.testing.assert_close(few(volume), SliceWise(flat)(volume))


def test_neighbours_and_repeats_set_the_channels():
    beside = SliceView(SliceSettings(channels="neighbours"))
    model = SliceWise(flat_model(6), beside)
    assert model.in_channels == 2
    volume = torch.randn(1, 2, *SIZE)
    padded = F.pad(volume, (1, 1))
    wanted = flat_model(6)(torch.stack([padded[:, :, :, :, 3 + i] for i in range(3)], 2).flatten(1, 2))
    torch.testing.assert_close(model(volume)[..., 3], wanted)
    assert SliceWise(flat_model(3), SliceView(SliceSettings(channels="repeat"))).in_channels == 1
    with pytest.raises(
        ModelError, match=r"channels of the model: found 2, expected 3 for slices\.channels=repeat"
    ):
        SliceWise(flat_model(2), SliceView(SliceSettings(channels="repeat")))
    with pytest.raises(ModelError, match="found 5, expected 3"):
        SliceWise(flat_model(5), beside)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotated_slices_are_rotated_back(axis):
    volume = torch.randn(2, 1, *SIZE)
    model = SliceWise(Echo(), SliceView(RADIOLOGICAL, axis=axis))
    assert torch.equal(model(volume), volume)
    assert model.divisor[axis] == 1
    assert sorted(model.divisor) == [1, 2, 4]
    rows = next(a for a in range(3) if model.divisor[a] == 2)
    assert "RAS"[rows] in ("A" if axis == 2 else "S")  # rows run along the patient's height, or its depth


def test_labels_are_rotated_with_their_slices():
    torch.manual_seed(0)
    volume, label = torch.randn(1, 1, *SIZE), torch.randint(0, 2, (1, 1, *SIZE))
    turned = SliceWise(Echo(), SliceView(RADIOLOGICAL, axis=2))
    straight = SliceWise(Echo(), SliceView(axis=2))
    for model in (turned, straight):
        model.criterion = lambda logits, label: (logits * label).mean()
    torch.testing.assert_close(turned.losses(volume, label)["loss"], straight.losses(volume, label)["loss"])


def test_instance_map_is_passed_to_instance_models():
    class Learner(Echo):
        def losses(self, image, label, instances=None):
            return {
                "objects": image.mean() * 0 + sum(len(one.unique()) for one in instances) / len(instances)
            }

    ids = torch.zeros(1, 1, *SIZE, dtype=torch.long)
    ids[..., 0], ids[:, :, :3, :, 4] = 7, 2
    volume = torch.zeros(1, 1, *SIZE)
    model = SliceWise(Learner(), SliceView(RADIOLOGICAL), batch_size=2)
    assert model.losses(volume, ids.clamp(max=1), ids)["objects"].item() == pytest.approx(10 / 9)
    both = MultiPlane([SliceWise(Learner(), SliceView(axis=a)) for a in (0, 2)])
    assert both.losses(volume, ids.clamp(max=1), ids)["objects"] > 1
    with pytest.raises(ModelError, match="instance map shape"):
        model.losses(volume, ids, ids[..., :3])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("radiological_view", [False, True])
def test_instances_of_slices_become_instances_of_the_volume(axis, radiological_view):
    volume = np.zeros(SIZE, np.float32)
    volume[1:4, 1:3, 2:7], volume[4:6, 3:6, 1:8] = 1, 2
    model = SliceWise(
        Echo(), SliceView(SliceSettings(radiological_view=radiological_view), axis), batch_size=2
    )
    slices = model.slice_instances(torch.from_numpy(volume)[None, None])
    assert len(slices) == SIZE[axis]
    found = link_slices(slices, axis=axis)
    assert np.array_equal(found.to_label_map(), volume)
    assert found.scores.tolist() == [0.5, 0.5]
    assert sorted(found.areas) == [30, 42]


def test_models_without_instances_raise():
    with pytest.raises(ModelError, match="finds no instances"):
        SliceWise(flat_model()).slice_instances(torch.zeros(1, 2, *SIZE))
    with pytest.raises(ModelError, match="volumes: found 2, expected 1"):
        SliceWise(Echo()).slice_instances(torch.zeros(2, 1, *SIZE))
