"""Patches: pure functions of (seed, stream, index), on the right place, and never of an invented class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medseg.data.patches.class_locations import locations_table
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.sampling import sample_generator
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import DataError
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from tests.helpers.patches import patch_dataset, read_patch

SHAPE = (14, 12, 10)


@pytest.fixture
def cases(make_stored):
    """Three cases whose voxels tell their place; case 2 has no foreground."""
    rng = np.random.default_rng(0)
    stored = []
    for number in range(3):
        image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE) / 1000 + 1 + number * 10
        label = np.zeros(SHAPE, np.uint8)
        if number < 2:
            label[rng.integers(14), rng.integers(12), rng.integers(10)] = 1
            label[2:5, 3:6, 4:8] = 2
        stored.append(make_stored(image, label, f"case{number}"))
    return stored


def patches(cases, **changes) -> PatchDataset:
    return patch_dataset(cases, **{"size": (8, 8, 6), "augmentation": Augmentation(), **changes})


def same(one, other) -> bool:
    return torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])


def test_a_sample_depends_on_nothing_but_its_index(cases):
    first, second = patches(cases), patches(cases)
    forwards = [first[index] for index in range(24)]
    torch.manual_seed(99)
    np.random.default_rng(99).random()
    backwards = [second[index] for index in reversed(range(24))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not same(forwards[0], forwards[2])


def test_seed_and_stream_change_the_samples(cases):
    base = patches(cases)[0]
    assert not same(base, patches(cases, seed=8)[0])
    assert not same(base, patches(cases, stream="validation")[0])
    assert sample_generator(1, "a", 2).random() == sample_generator(1, "a", 2).random()
    assert sample_generator(1, "a", 23).random() != sample_generator(12, "a", 3).random()


def test_workers_and_threads_do_not_change_the_samples(cases):
    dataset = patches(cases, size=(36, 36, 36))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = list(DataLoader(dataset, batch_size=2))
    finally:
        torch.set_num_threads(before)
    for batch, other in zip(alone, DataLoader(dataset, batch_size=2, num_workers=2), strict=True):
        assert same(batch, other)


def test_samples_have_the_promised_shapes_and_types(cases):
    sample = patches(cases)[0]
    assert (sample["image"].shape, sample["image"].dtype) == ((1, 8, 8, 6), torch.float32)
    assert (sample["label"].shape, sample["label"].dtype) == ((1, 8, 8, 6), torch.uint8)
    assert len(patches(cases)) == 24


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flat_patches_lose_the_slice_axis(cases, axis):
    size = [8, 8, 8]
    size[axis] = 1
    sample = patches(cases, size=tuple(size), view=SliceView(axis=axis))[1]
    assert sample["image"].shape == (1, 8, 8)
    assert sample["label"].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("batch", "share", "forced"), [(2, 0.33, 1), (9, 0.33, 3), (1, 0.33, 0), (4, 0, 0), (4, 1, 4)]
)
def test_the_last_patches_of_a_batch_hold_foreground(cases, batch, share, forced):
    dataset = patches(
        cases[:2], batch_size=batch, foreground=share, augmentation=None, length=batch * 12, size=(4, 4, 4)
    )
    assert sum(dataset.sampler.is_centred_on_foreground(index) for index in range(batch)) == forced
    centres = [dataset[index]["label"][0, 2, 2, 2].item() > 0 for index in range(batch * 12)]
    by_place = np.array(centres).reshape(12, batch)
    assert by_place[:, batch - forced :].all()
    assert forced == batch or not by_place[:, : batch - forced].all()


def test_classes_are_sampled_evenly_whatever_their_size(cases):
    dataset = patches(cases[:1], foreground=1, augmentation=None, size=(1, 1, 1), length=400)
    drawn = [dataset[index]["label"].item() for index in range(400)]
    assert set(drawn) == {1, 2}
    assert 150 < drawn.count(1) < 250  # one voxel against 36


def test_a_case_without_foreground_still_gives_patches(cases):
    dataset = patches(cases[2:], foreground=1)
    assert not dataset[0]["label"].any()


def test_no_case_is_refused():
    with pytest.raises(DataError, match="patches: found no case, expected at least one"):
        patches([])


def test_plain_patches_are_within_the_case(cases):
    dataset = patches(cases, foreground=0, augmentation=None)
    assert all((dataset[index]["image"] != 0).all() for index in range(24))


def test_a_small_case_is_padded_with_zeros_and_never_cut(cases):
    dataset = patches(cases[:1], foreground=0, augmentation=None, size=(20, 12, 10))
    for index in range(24):
        filled = dataset[index]["image"][0] != 0
        assert filled.sum() == np.prod(SHAPE)
        assert set(filled.sum(0).unique().tolist()) == {14}


@settings(max_examples=40, deadline=None)
@given(
    centre=st.tuples(*(st.integers(-3, size + 3) for size in SHAPE)),
    size=st.tuples(*(st.integers(1, 9) for _ in range(3))),
)
def test_the_identity_matrix_equals_a_plain_crop(centre, size):
    image, label = _arrays()
    case = _Case(image, label)
    plain = read_patch(case, np.array(centre), size)
    turned = read_patch(case, np.array(centre), size, np.eye(3))
    torch.testing.assert_close(turned[0], plain[0], atol=1e-4, rtol=1e-5)
    assert torch.equal(turned[1], plain[1])


class _Case:
    """Arrays in memory under the names that `PatchReader` reads."""

    def __init__(self, image, label):
        self.image, self.label = image, label


def _arrays():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return image, rng.choice([0, 1, 4, 9], size=(1, *SHAPE)).astype(np.uint8)


def quarter_turn(first: int, second: int) -> np.ndarray:
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = 0
    matrix[first, second], matrix[second, first] = -1, 1
    return matrix


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2), (1, 0)])
def test_a_quarter_turn_equals_rot90(axes):
    image = np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype(np.float32)
    label = np.random.default_rng(1).integers(0, 3, (1, 9, 9, 9)).astype(np.uint8)
    turned, classes = read_patch(_Case(image, label), np.array([4, 4, 4]), (9, 9, 9), quarter_turn(*axes))
    # Patch offset e_first reads source offset e_second: the array is turned from `second` towards `first`.
    expected = np.rot90(image[0], 1, axes=(axes[1], axes[0]))
    np.testing.assert_allclose(turned[0].numpy(), expected, atol=1e-5)
    assert np.array_equal(classes[0].numpy(), np.rot90(label[0], 1, axes=(axes[1], axes[0])))


def test_a_scale_above_1_makes_objects_smaller():
    label = np.zeros((1, 21, 21, 21), np.uint8)
    label[0, 6:15, 6:15, 6:15] = 1
    case = _Case(label.astype(np.float32), label)
    counts = [
        int(read_patch(case, np.array([10, 10, 10]), (21, 21, 21), np.eye(3) * scale)[1].sum())
        for scale in (0.8, 1.0, 1.4)
    ]
    assert counts[1] == 9**3
    assert counts[0] == pytest.approx(9**3 / 0.8**3, rel=0.35)
    assert counts[2] == pytest.approx(9**3 / 1.4**3, rel=0.35)


@settings(max_examples=40, deadline=None)
@given(
    matrix=st.lists(st.floats(-1.5, 1.5), min_size=9, max_size=9),
    centre=st.tuples(*(st.integers(0, size) for size in SHAPE)),
)
def test_no_class_is_invented_and_all_is_finite(matrix, centre):
    image, label = _arrays()
    turned, classes = read_patch(
        _Case(image, label), np.array(centre), (7, 6, 5), np.array(matrix).reshape(3, 3)
    )
    assert turned.shape == (2, 7, 6, 5)
    assert torch.isfinite(turned).all()
    assert turned.min() >= min(image.min(), 0) - 1e-4
    assert turned.max() <= max(image.max(), 0) + 1e-4
    assert set(classes.unique().tolist()) <= {0, 1, 4, 9}


def test_rotated_label_follows_its_image():
    """Where the image is the label, the turned image's bright half is the turned label."""
    label = np.zeros((1, 24, 24, 24), np.uint8)
    label[0, 5:18, 7:16, 4:20] = 3
    case = _Case((label > 0).astype(np.float32), label)
    angle = np.radians(25)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    image, classes = read_patch(case, np.array([12, 12, 12]), (24, 24, 24), matrix)
    assert torch.equal(classes[0] == 3, image[0] > 0.5)


def test_outside_is_background_and_zero(cases):
    image, label = read_patch(cases[0], np.array([500, 500, 500]), (4, 4, 4))
    assert not image.any()
    assert not label.any()
    image, label = read_patch(cases[0], np.array([500, 500, 500]), (4, 4, 4), quarter_turn(0, 1))
    assert not image.any()
    assert not label.any()


def test_forced_patches_take_cases_with_foreground(cases):
    """A forced patch of a case without foreground would be one more of background: of rare labels hardly any is seen."""
    dataset = patches(cases, foreground=1, augmentation=None, size=(1, 1, 1), length=60)
    assert all(dataset[index]["label"].item() for index in range(60))


def test_cases_that_all_have_foreground_keep_their_sequence(cases):
    """The first two draws of a sample are those of the case and of the place, forced or not."""
    dataset = patches(cases[:2], augmentation=None, size=(1, 1, 1))
    for index in range(24):
        rng = sample_generator(7, "train", index)
        number = int(rng.integers(2))
        if index % 2:
            voxels = cases[number].class_locations[1 + int(rng.integers(2))]
            place = voxels[int(rng.integers(len(voxels)))]
        else:
            place = rng.integers([0, 0, 0], np.array(SHAPE) - 1, endpoint=True)
        assert dataset[index]["image"].item() == cases[number].image[(0, *place)]


@pytest.mark.parametrize(("batch", "share"), [(1, 0.33), (1, 0.5), (1, 0.9), (2, 0.1), (1, 0), (1, 1)])
def test_a_share_too_small_for_every_batch_is_kept_over_several(cases, batch, share):
    dataset = patches(cases[:1], batch_size=batch, foreground=share, length=100)
    forced = [dataset.sampler.is_centred_on_foreground(index) for index in range(100)]
    assert sum(forced) == pytest.approx(100 * share, abs=1)
    if 0 < share < 0.5:
        assert not any(forced[: int(1 / share) - 1])
        assert all(any(forced[start : start + round(1 / share) + 1]) for start in range(90))


IGNORE = LabelSets.from_annotations(replace(Labels.from_names({"a": 1, "b": 2}), ignore=9))


def scribbled(make_stored, label_sets=IGNORE):
    """A case of which nobody looked at anything but a corner."""
    label = np.full(SHAPE, 3, np.uint8)
    label[:3, :3, :3] = 0
    label[0, 0, 0], label[2, 2, 2] = 1, 2
    image = np.ones((1, *SHAPE), np.float32)
    stored = make_stored(image, label)
    np.save(stored.folder / "locations.npy", locations_table(label, label_sets))
    return stored


def test_patches_are_centred_on_annotated_voxels(make_stored):
    dataset = patches([scribbled(make_stored)], augmentation=None, size=(1, 1, 1), length=200)
    seen = [dataset[index]["label"].item() for index in range(200)]
    assert set(seen) == {0, 1, 2}
    assert set(seen[1::2]) == {1, 2}  # forced
    assert seen[::2].count(0) > 80


def test_forced_patches_sample_regions(make_stored):
    regions = Labels.from_names({"a": 1, "b": 2}).with_regions({"both": [1, 2], "inner": [2]})
    case = scribbled(make_stored, LabelSets.from_annotations(replace(regions, ignore=9)))
    assert sorted(case.class_locations) == [0, 1, 2]
    assert len(case.class_locations[0]) == 27
    assert len(case.class_locations[1]) == 2
    dataset = patches([case], foreground=1, augmentation=None, size=(1, 1, 1), length=400)
    seen = [dataset[index]["label"].item() for index in range(400)]
    assert seen.count(2) == pytest.approx(
        300, abs=40
    )  # half of the draws are inner, half of the others as well


def test_label_sets_are_rotated_like_classes(make_stored):
    """Augmented patches hold no value but those of the case, and 0 outside of it."""
    dataset = patches([scribbled(make_stored)], size=(12, 12, 12), length=30)
    values = set()
    for index in range(30):
        values |= set(dataset[index]["label"].unique().tolist())
    assert values <= {0, 1, 2, 3}
    assert 3 in values


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_rotated_and_scaled_only_in_their_plane(make_stored, axis):
    """All slices alike, each from its own place; the other way round slices mix."""
    picture = np.expand_dims(np.random.default_rng(0).normal(size=(30, 28)), axis)
    steps = np.arange(9).reshape([-1 if a == axis else 1 for a in range(3)])
    image = picture + 100 * steps
    case = make_stored(np.stack([np.ones_like(image), image]), (image > 350).astype(np.uint8))
    size = [10, 10, 10]
    size[axis] = 5
    off = {key: 0 for key in Augmentation().to_plain() if key.endswith("_p")} | {"mirror_axes": []}
    strong = off | {"rotate_p": 1, "scale_p": 1, "rotate_degrees": 180}
    even = {axis: 0, None: 0}
    for in_plane in even:
        changes = Augmentation.parse(strong | {"dummy_2d_axis": in_plane})
        made = patches([case], size=tuple(size), augmentation=changes, foreground=0)
        for index in range(12):
            sample = made[index]
            ones, values, label = (
                part.movedim(axis, 0).numpy() for part in (*sample["image"], sample["label"][0])
            )
            inside = (ones > 0.99999).all(0)  # and not beside the border, where it is mixed with zeros
            assert inside.any() or in_plane is None
            if inside.any() and np.allclose(np.diff(values[:, inside], axis=0), 100, atol=0.05):
                even[in_plane] += 1
                assert np.array_equal(label[:, inside], values[:, inside] > 350)
    assert even[axis] == 12
    assert even[None] < 3
