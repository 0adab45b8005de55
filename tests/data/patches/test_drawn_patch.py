"""Patches that are drawn in a worker and augmented on the device are those that a worker augments.

The code for CUDA devices differs from that for the processor where selecting voxels by value would wait for the device. It
runs on the processor here, and on the meta device, which has no values to wait for.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, default_collate

from medseg.data.patches import augment, extraction
from medseg.data.patches.device_interpolation import interpolate_map
from medseg.data.patches.drawn_patch import DrawnPatch, PackedPatches
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.patches.interpolation import interpolate_ids, sampling_grid
from medseg.data.settings import Augmentation, FirstStageAugmentation
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from tests.helpers.patches import patch_dataset

NAMES = (
    *("rotate", "scale", "noise", "blur", "brightness"),
    *("contrast", "low_resolution", "gamma", "gamma_inverted"),
)
IMAGE_TOLERANCE = 2e-5
"""Largest difference of intensities that have a standard deviation of about 1."""
SHAPE = (26, 24, 22)
THICK, FLAT = SliceView(SliceSettings(channels="neighbours"), axis=2), SliceView(axis=1)
TURNED = SliceView(SliceSettings(radiological_view=True), axis=0)


@pytest.fixture(scope="module")
def maps():
    """An image with two channels, and a map of five values in smooth patches."""
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=(2, *SHAPE)), (0, 1, 1, 1)).astype(np.float32) * 5
    field = gaussian_filter(rng.normal(size=SHAPE), 2) * 10
    return image, np.digitize(field, [-1, 0, 0.5, 1]).astype(np.uint8)


@pytest.fixture
def cases(maps, make_stored):
    image, label = maps
    stored = [make_stored(image, label, "one"), make_stored(image[:, ::-1].copy(), label[::-1].copy(), "two")]
    for case in stored:
        np.save(case.folder / "instances.npy", (case.label[:] * np.int32(70_000)))
        np.save(case.folder / "first_stage.npy", case.label[:])
    return stored


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Take the branches of other devices, on the processor."""
    monkeypatch.setattr(augment, "on_host", lambda tensor: False)
    monkeypatch.setattr(extraction, "on_host", lambda tensor: False)


def only(*names: str, **changes) -> dict:
    return {**{f"{name}_p": float(name in names) for name in NAMES}, "mirror_axes": [], **changes}


def pair(cases, settings: dict, **options):
    """Return the same patches, augmented by a worker and to be augmented on the device."""
    options = {"size": (14, 12, 10), "length": 12, **options}
    return (
        patch_dataset(cases, augmentation=Augmentation.parse({**settings, "device": where}), **options)
        for where in ("worker", "device")
    )


def check_equal(worker, device) -> None:
    indices = range(len(worker))
    expected = default_collate([worker[index] for index in indices])
    drawn = [device[index] for index in indices]
    assert all(isinstance(one, DrawnPatch) for one in drawn)
    found = device.finish_batch(PackedPatches.pack(drawn))
    assert list(found) == list(expected)
    for name, part in found.items():
        assert part.shape == expected[name].shape
        assert part.dtype == expected[name].dtype
        if name == "image":
            torch.testing.assert_close(part, expected[name], atol=IMAGE_TOLERANCE, rtol=1e-5)
        else:
            assert torch.equal(part, expected[name])


@pytest.mark.parametrize("view", [None, FLAT], ids=["3d", "2d"])
@pytest.mark.parametrize("name", [*NAMES, "mirror"])
def test_each_transform_is_that_of_a_worker(cases, as_on_cuda, name, view):
    size = (14, 12, 10) if view is None else (14, 1, 10)
    settings = only(name) if name != "mirror" else only(mirror_axes=None)
    check_equal(*pair(cases, settings, view=view, size=size))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({}, {"dummy_2d_axis": 2}),
        ({"size": (14, 1, 12), "view": FLAT}, {}),
        ({"size": (14, 12, 1), "view": THICK}, {}),
        ({"size": (1, 12, 14), "view": TURNED}, {"mirror_axes": [1]}),
        ({"first_stage": FirstStageChannels(4, FirstStageAugmentation())}, {}),
        ({"first_stage": FirstStageChannels(4), "size": (14, 1, 12), "view": FLAT}, {}),
    ],
    ids=["3d", "thick voxels", "2d", "thick slices", "radiological", "cascade", "cascade 2d"],
)
def test_all_transforms_together_are_those_of_a_worker(cases, as_on_cuda, options, settings):
    check_equal(*pair(cases, {f"{name}_p": 0.6 for name in NAMES} | settings, length=20, **options))


@pytest.mark.slow
def test_nothing_waits_for_the_device(cases):
    """A tensor of the meta device has no values: reading one, or selecting by them, raises."""
    options = {"first_stage": FirstStageChannels(4), "length": 16}
    _, device = pair(cases, {f"{name}_p": 0.6 for name in NAMES}, **options)
    packed = PackedPatches.pack([device[index] for index in range(16)])
    found = device.finish_batch(packed.map(lambda part: part.to("meta")))
    assert {name: tuple(part.shape) for name, part in found.items()} == {
        "image": (16, 6, 14, 12, 10), "label": (16, 1, 14, 12, 10), "instances": (16, 1, 14, 12, 10),
    }  # fmt: skip
    assert {part.device.type for part in found.values()} == {"meta"}


def test_a_loader_with_workers_yields_the_patches_of_one_without(cases):
    _, device = pair(cases, {f"{name}_p": 0.6 for name in NAMES}, length=8)
    for workers in (0, 2):
        loader = DataLoader(device, batch_size=4, num_workers=workers, collate_fn=PackedPatches.pack)
        batches = [device.finish_batch(batch) for batch in loader]
        assert len(batches) == 2
        for number, batch in enumerate(batches):
            alone = [device.finish(device.draw(4 * number + index)) for index in range(4)]
            for name, part in batch.items():
                assert torch.equal(part, torch.stack([sample[name] for sample in alone]))


def test_a_batch_has_one_tensor_per_kind_and_keeps_its_patches(cases):
    _, device = pair(cases, only("rotate", "noise"), length=6)
    drawn = [device[index] for index in range(6)]
    assert len({one.box.image.shape for one in drawn}) > 1  # rotated boxes differ in size
    packed = pickle.loads(pickle.dumps(PackedPatches.pack(drawn)))
    assert len(packed) == 6
    assert [(part.dim(), part.dtype) for part in packed.tensors] == [
        (1, torch.float32), (1, torch.uint8), (1, torch.int32), (1, torch.float32),
    ]  # fmt: skip
    for one, other in zip(drawn, packed.unpack(), strict=True):
        assert torch.equal(one.box.image, other.box.image)
        assert torch.equal(one.box.label, other.box.label)
        assert torch.equal(one.changes.noise, other.changes.noise)
        assert one.changes.noise_std == other.changes.noise_std
        assert np.array_equal(one.box.rotation.matrix, other.box.rotation.matrix)


def test_patches_without_noise_share_a_batch_with_noisy_ones(cases):
    _, device = pair(cases, only(noise_p=0.5), length=12)
    drawn = [device[index] for index in range(12)]
    noisy = [one.changes.noise is not None for one in drawn]
    assert any(noisy)
    assert not all(noisy)
    unpacked = PackedPatches.pack(drawn).unpack()
    assert [one.changes.noise is not None for one in unpacked] == noisy


def test_samples_carry_labels_in_the_smallest_type(cases, make_stored, maps):
    image, label = maps
    many = make_stored(image, label.astype(np.uint16) * 300, "many")
    assert patch_dataset(cases, (8, 8, 8))[0]["label"].dtype == torch.uint8
    for where in ("worker", "device"):
        turned = Augmentation(rotate_p=1, device=where)
        dataset = patch_dataset([many], (8, 8, 8), augmentation=turned)
        sample = dataset.finish(dataset.draw(1))
        assert sample["label"].dtype == torch.int32
        assert set(sample["label"].unique().tolist()) <= {0, 300, 600, 900, 1200}
        assert sample["label"].max() > 255


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 2.0])
def test_ties_go_to_the_smallest_value(maps, factor):
    """At half voxels many shares are equal: they are decided as those of ids on the processor."""
    _, label = maps
    grid = sampling_grid(np.eye(3) * factor, (11, 10, 9), SHAPE, np.array([12, 11, 10]))
    found = interpolate_map(torch.from_numpy(label[None]), grid)
    assert torch.equal(found, interpolate_ids(torch.from_numpy(label[None]).long(), grid))


def test_samples_outside_the_map_are_background(maps):
    _, label = maps
    for shift in (-500, 500):
        grid = sampling_grid(np.eye(3), (3, 3, 3), SHAPE, np.array([shift, 4, 4]))
        assert not interpolate_map(torch.from_numpy(label[None]), grid).any()
