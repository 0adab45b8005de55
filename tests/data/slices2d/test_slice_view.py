"""Slices of volumes as images of a 2D model: settings, channels, and the turn to how a radiologist sees them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medseg.data.preprocessing.channel_methods import resolve_methods
from medseg.data.preprocessing.normalize import Normalization, normalizations
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Augmentation
from medseg.data.slices2d.radiological_view import RadiologicalView
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ConfigError, DataError
from medseg.labels.instances import Instances
from medseg.models.volumetric.slicewise import SliceWise
from medseg.viz.slice_images import label_slice
from medseg.volumes.grid import Grid
from medseg.volumes.orientation import reorient_array
from medseg.volumes.volume import Volume
from tests.helpers.patches import patch_dataset

SHAPE = (9, 8, 7)
PLANES = ("sagittal", "coronal", "axial")
ORIENTATIONS = ("RAS", "LPS", "SAR", "PIL")
HOUNSFIELD = Preprocessing(channels=normalizations(resolve_methods("hounsfield", ["CT"])))


# Settings -------------------------------------------------------------------------------------------------


def test_the_defaults_change_nothing():
    settings = SliceSettings()
    assert settings.num_channels(4) == 4
    assert settings.window((64, 64, 1), 2) == (64, 64, 1)
    view, volume = SliceView.from_preprocessing(settings, 2, Preprocessing()), torch.randn(1, 4, *SHAPE)
    assert torch.equal(view.images(volume), volume[0].movedim(-1, 0))
    assert view.radiological_view is None
    assert view.planes == (view,)
    assert view.patch_size((8, 8, 1)) == (8, 8, 1)


def test_channels_of_the_model_and_windows():
    assert SliceSettings(channels="repeat").num_channels(1) == 3
    assert SliceSettings(channels="neighbours", neighbours=2).num_channels(3) == 15
    assert SliceSettings(channels="ct_windows", ct_windows=((40, 400), (0, 80))).num_channels(1) == 2
    assert SliceSettings(channels="neighbours").window((64, 1, 48), 1) == (64, 16, 48)
    assert SliceSettings(planes=(0, 1, 2)).window((64, 48, 1), 2) == (64, 48, 64)
    with pytest.raises(ConfigError, match="found repeat with 2 channels"):
        SliceSettings(channels="repeat").num_channels(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"planes": [1]}, "planes: found one, expected several or none"),
        ({"planes": [0, 1], "channels": "neighbours"}, "planes: found several with channels=neighbours"),
        ({"planes": [0, 0]}, "expected each axis once"),
        ({"ct_windows": [[40, 0]]}, "greater than 0"),
        ({"channel": "repeat"}, "Did you mean 'channels'"),
    ],
)
def test_incompatible_settings_raise(values, message):
    with pytest.raises(ConfigError, match=message):
        SliceSettings.parse(values)


# Intensities ----------------------------------------------------------------------------------------------


def test_hounsfield_keeps_every_window():
    (channel,) = HOUNSFIELD.channels
    prepared = channel.apply(np.array([-2000.0, -1024, -24, 976, 3071]))
    assert prepared.tolist() == pytest.approx([0, 0, 1, 2, 4.095])
    assert SliceSettings(channels="ct_windows").hounsfield(HOUNSFIELD) == (1000, -1024)
    raw = Preprocessing(channels=(Normalization(method="none"),))
    assert SliceSettings(channels="ct_windows").hounsfield(raw) == (1, 0)
    mixed = normalizations(resolve_methods(["hounsfield", "rescale"], ["CT", "PET"]))
    assert [one.method for one in mixed] == ["ct", "rescale"]


@pytest.mark.parametrize(
    "channel",
    [Normalization(method="ct", mean=90, std=50, low=-60, high=300), Normalization(method="zscore")],
)
def test_windows_without_ct_intensities_raise(channel):
    with pytest.raises(
        ConfigError, match=r"windows need -1024 to 1300 HU, found .*Set preprocess\.normalize"
    ):
        SliceSettings(channels="ct_windows").hounsfield(Preprocessing(channels=(channel,)))
    narrow = SliceSettings(channels="ct_windows", ct_windows=((40, 40),))
    if channel.method == "ct":
        assert narrow.hounsfield(Preprocessing(channels=(channel,))) == (50, 90)


def test_windows_of_a_ct():
    view = SliceView.from_preprocessing(SliceSettings(channels="ct_windows"), 2, HOUNSFIELD)
    units = torch.tensor([-1350.0, -600, 150, -160, 40, 240, -500, 400, 1300])
    prepared = (units.clamp_min(-1024) + 1024) / 1000
    lung, soft, bone = view.channels_of_volume(prepared.view(1, 1, 9, 1, 1))[0, :, :, 0, 0]
    assert lung.tolist() == pytest.approx([0.2173, 0.5, 1, 0.7933, 0.9267, 1, 0.5667, 1, 1], abs=1e-4)
    assert soft.tolist() == pytest.approx([0, 0, 1 - 0.225, 0, 0.5, 1, 0, 1, 1], abs=1e-4)
    assert bone.tolist()[7:] == pytest.approx([0.5, 1], abs=1e-4)


# Channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_slices_are_channels(axis):
    volume = torch.randn(2, 2, *SHAPE)
    settings = SliceSettings(channels="neighbours", neighbours=2)
    seen = SliceView(settings, axis).channels_of_volume(volume)
    assert seen.shape == (2, 10, *SHAPE)
    depth = SHAPE[axis]
    for channel, step, z in itertools.product(range(2), range(-2, 3), range(depth)):
        found = seen[:, channel * 5 + step + 2].select(1 + axis, z)
        inside = 0 <= z + step < depth
        wanted = volume[:, channel].select(1 + axis, z + step) if inside else torch.zeros_like(found)
        assert torch.equal(found, wanted)


def test_repeated_channels():
    volume = torch.randn(1, 1, *SHAPE)
    seen = SliceView(SliceSettings(channels="repeat", repeats=4)).channels_of_volume(volume)
    assert torch.equal(seen, torch.cat([volume] * 4, 1))


# Display --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_have_the_orientation_of_the_viewer(axis, orientation):
    """Against `medseg.viz`, which draws in any orientation: a label map of distinct values, slice by slice."""
    values = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(1, *SHAPE).astype(np.int32)
    volume = Volume(values, Grid.from_spacing(SHAPE), "label").reoriented(orientation)
    across = orientation[axis]
    plane = next(p for p, codes in zip(PLANES, ("RL", "AP", "SI"), strict=True) if across in codes)
    display = RadiologicalView.from_orientation(axis, orientation)
    for index in (0, 3):
        found = display.turn(torch.from_numpy(volume.data).select(1 + axis, index))[0]
        place = index if across in "RAS" else volume.data.shape[1 + axis] - 1 - index
        assert np.array_equal(found.numpy(), label_slice(volume, plane, place))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotated_slices_are_rotated_back(axis, orientation):
    display = RadiologicalView.from_orientation(axis, orientation)
    slices = torch.randint(0, 5, (2, 3, 9, 8))
    assert torch.equal(display.turn_back(display.turn(slices)), slices)
    ids = slices[0, 0].numpy()
    pictured = Instances.from_map(display.turn(slices[0, 0]).numpy(), scores=dict.fromkeys(range(5), 0.5))
    back = display.instances_back(pictured)
    assert back.shape == ids.shape
    assert np.array_equal(back.to_map(), ids)
    assert set(back.scores) == {0.5}


def test_natural_image_is_upright(tmp_path):
    """Rows and columns of a photograph are those that the model sees, though its array is RAS."""
    rows = np.arange(12).reshape(3, 4)
    picture = Volume(
        rows.T[None, ..., None].astype(np.int32), Grid((4, 3, 1), np.diag([-1, -1, 1, 1])), "label"
    )
    prepared = torch.from_numpy(picture.reoriented("RAS").data)
    assert np.array_equal(RadiologicalView.from_orientation(2, "RAS").turn(prepared[..., 0])[0].numpy(), rows)


def test_unknown_orientation_raises():
    with pytest.raises(DataError, match="axis: found 3"):
        RadiologicalView.from_orientation(3)
    with pytest.raises(DataError, match="axis: found 3, expected 0, 1 or 2"):
        SliceView(axis=3)
    with pytest.raises(DataError, match="orientation: found 'RRS'"):
        RadiologicalView.from_orientation(0, "RRS")
    assert reorient_array(np.zeros(SHAPE), "RAS", "LPS").shape == SHAPE


# Training and prediction see the same ---------------------------------------------------------------------

VIEWS = (
    SliceSettings(channels="repeat", radiological_view=True),
    SliceSettings(channels="neighbours", radiological_view=True),
    SliceSettings(channels="neighbours", neighbours=2),
    SliceSettings(channels="ct_windows"),
    SliceSettings(radiological_view=True),
)


@pytest.mark.parametrize(
    "settings", VIEWS, ids=lambda s: f"{s.channels}-{s.neighbours}-{s.radiological_view}"
)
@pytest.mark.parametrize("axis", [0, 2])
def test_patches_equal_the_view_of_the_volume(make_stored, axis, settings):
    image = np.random.default_rng(0).uniform(0.5, 4, (1, *SHAPE)).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[4, 4, 3] = 1  # the only foreground: every patch is centred on it
    case = make_stored(image, label)
    size = [9, 8, 7]
    size[axis] = 1
    view = SliceView.from_preprocessing(settings, axis, HOUNSFIELD)
    sample = patch_dataset([case], tuple(size), length=1, batch_size=1, seed=0, foreground=1, view=view)[0]
    model = SliceWise(_Echo(settings.num_channels(1)), view)
    seen = model.view.images(torch.from_numpy(image)[None])[(4, 4, 3)[axis]]
    assert sample["image"].shape == seen.shape
    assert torch.equal(sample["image"], seen)
    middle = torch.from_numpy(label).select(axis, (4, 4, 3)[axis])[None].long()
    assert torch.equal(
        sample["label"], middle if view.radiological_view is None else view.radiological_view.turn(middle)
    )


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("depth", [1, 2, 6])
def test_each_slice_of_a_volume_is_the_middle_one_of_patches(make_stored, axis, depth):
    shape = [8, 8, 8]
    shape[axis] = depth
    along = np.arange(1.0, depth + 1).reshape([-1 if a == axis else 1 for a in range(3)])
    image = np.broadcast_to(along, shape)[None].astype(np.float32)
    size = [8, 8, 8]
    size[axis] = 1
    view = SliceView(SliceSettings(channels="neighbours", neighbours=2), axis)
    case = make_stored(image, np.ones(shape, np.uint8))
    dataset = patch_dataset([case], tuple(size), length=80, seed=0, foreground=0, view=view)
    seen = [dataset[index]["image"][:, 0, 0].tolist() for index in range(80)]
    assert {values[2] for values in seen} == set(range(1, depth + 1))
    padded = [0, 0, *range(1, depth + 1), 0, 0]
    assert all(values == padded[int(values[2]) - 1 : int(values[2]) + 4] for values in seen)


def test_thick_patches_are_mirrored_in_the_plane_only(make_stored):
    image = np.random.default_rng(0).uniform(0.5, 4, (1, *SHAPE)).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[4, 4, 3] = 1
    nothing = dict.fromkeys([name for name in Augmentation.model_fields if name.endswith("_p")], 0.0)
    still = {**nothing, "mirror_axes": (1,)}
    dataset = patch_dataset(
        [make_stored(image, label)], (1, 7, 7), length=20, batch_size=1, seed=0, foreground=1,
        augmentation=Augmentation(**still), view=SliceView(SliceSettings(channels="neighbours"), axis=0),
    )  # fmt: skip
    plain = torch.from_numpy(image[0, 3:6, 1:8, 0:7])
    kinds = set()
    for index in range(20):
        found = dataset[index]["image"]
        flipped = torch.equal(found, plain.flip(2))
        assert flipped or torch.equal(found, plain)
        kinds.add(flipped)
    assert kinds == {True, False}


def test_volumes_of_unknown_orientation_are_not_displayed():
    unknown = HOUNSFIELD.model_copy(update={"orientation": None})  # files that keep their own axes
    with pytest.raises(ConfigError, match=r"slices\.radiological_view: found preprocess\.orientation null"):
        SliceView.from_preprocessing(SliceSettings(radiological_view=True), 2, unknown)


def _Echo(channels: int):
    from medseg.models.base import Model

    class Echo(Model):
        """Gives its image back as logits."""

        def forward(self, image):
            return image

    return Echo(spatial_dims=2, in_channels=channels, num_classes=channels)
