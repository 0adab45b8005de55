"""Augmentation: reproducible, of the promised shapes, and nothing that touches a label but a flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.data.patches.augment import apply_changes
from medseg.data.patches.extraction import Patch
from medseg.data.patches.random_changes import Changes, draw_affine, draw_changes
from medseg.data.settings import Augmentation
from tests.helpers.patches import NO_AUGMENTATION as OFF
from tests.helpers.patches import augmented

ALL = dict.fromkeys(OFF, 1.0)
INTENSITY = [name for name in OFF if name not in ("rotate_p", "scale_p")]


def sample(dims=3, channels=2):
    torch.manual_seed(0)
    shape = (9, 8, 7)[:dims]
    return torch.randn(channels, *shape), torch.randint(0, 3, (1, *shape))


def rng(seed=0):
    return np.random.default_rng(seed)


def settings(**changes) -> Augmentation:
    return Augmentation.parse({**OFF, "mirror_axes": [], **changes})


@pytest.mark.parametrize("dims", [2, 3])
def test_everything_at_once_stays_finite_and_reproducible(dims):
    image, label = sample(dims)
    before = image.clone(), label.clone()
    chosen = Augmentation.parse(ALL)
    for seed in range(30):
        one, two = augmented(image, label, chosen, rng(seed)), augmented(image, label, chosen, rng(seed))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        assert (one[0].shape, one[1].shape, one[0].dtype, one[1].dtype) == (
            image.shape,
            label.shape,
            image.dtype,
            label.dtype,
        )
        assert torch.isfinite(one[0]).all()
        assert one[0].is_contiguous()
        assert one[1].is_contiguous()
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_a_constant_patch_stays_finite(value):
    image, label = torch.full((1, 6, 6, 6), value), torch.zeros(1, 6, 6, 6, dtype=torch.int64)
    for seed in range(10):
        assert torch.isfinite(augmented(image, label, Augmentation.parse(ALL), rng(seed))[0]).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 40, 3)])
def test_thin_patches(shape):
    image, label = torch.randn(1, *shape), torch.zeros(1, *shape, dtype=torch.int64)
    if np.prod(shape) > 1:
        result, _ = augmented(image, label, Augmentation.parse(ALL), rng())
        assert result.shape == image.shape
        assert torch.isfinite(result).all()


def test_all_off_changes_nothing():
    image, label = sample()
    result = augmented(image, label, settings(), rng())
    assert torch.equal(result[0], image)
    assert torch.equal(result[1], label)


@pytest.mark.parametrize("name", INTENSITY)
def test_changes_of_intensity_leave_the_label(name):
    image, label = sample()
    changed = 0
    for seed in range(8):
        result = augmented(image, label, settings(**{name: 1.0}), rng(seed))
        assert torch.equal(result[1], label)
        changed += not torch.equal(result[0], image)
    assert changed >= 4


def test_mirroring_flips_image_and_label_alike():
    image, _ = sample(channels=1)
    label = (image > 0).long()
    seen = set()
    for seed in range(60):
        flipped_image, flipped_label = augmented(image, label, settings(mirror_axes=None), rng(seed))
        assert torch.equal(flipped_label, (flipped_image > 0).long())
        axes = next(axes for axes in ALL_AXES if torch.equal(flipped_image, image.flip(axes)))
        seen.add(axes)
    assert seen == set(ALL_AXES)  # every combination occurs


ALL_AXES = [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]


def test_mirroring_keeps_to_the_named_axes_and_to_those_of_a_flat_patch():
    image, label = sample(2, 1)
    for seed in range(20):
        result, _ = augmented(image, label, settings(mirror_axes=[1, 2]), rng(seed))
        assert torch.equal(result, image) or torch.equal(result, image.flip(2))


def test_noise_has_the_chosen_deviation():
    image = torch.zeros(1, 40, 40, 40)
    result, _ = augmented(image, image.long(), settings(noise_p=1, noise_std=[0.5, 0.5]), rng())
    assert float(result.std()) == pytest.approx(0.5, rel=0.02)
    assert float(result.mean()) == pytest.approx(0, abs=0.01)


def test_blur_equals_scipy_within_the_patch():
    from scipy.ndimage import gaussian_filter

    image = torch.randn(1, 12, 13, 14)
    done = 0
    for seed in range(8):
        result, _ = augmented(image, image.long(), settings(blur_p=1, blur_sigma=[0.8, 0.8]), rng(seed))
        if torch.equal(result, image):
            continue  # each channel is blurred with probability one half
        done += 1
        expected = gaussian_filter(image[0].numpy(), 0.8, mode="mirror", radius=2)
        np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-5)
    assert done


def test_brightness_contrast_and_gamma_by_their_definitions():
    image, label = sample(channels=1)
    bright, _ = augmented(image, label, settings(brightness_p=1, brightness=[0.5, 0.5]), rng())
    torch.testing.assert_close(bright, image * 0.5)
    sharp, _ = augmented(image, label, settings(contrast_p=1, contrast=[2, 2]), rng())
    expected = ((image - image.mean()) * 2 + image.mean()).clamp(image.min(), image.max())
    torch.testing.assert_close(sharp, expected)
    for name in ("gamma_p", "gamma_inverted_p"):
        bent, _ = augmented(image, label, settings(**{name: 1.0, "gamma": [1.5, 1.5]}), rng())
        assert not torch.allclose(bent, image)
        torch.testing.assert_close(bent.mean(), image.mean(), atol=1e-5, rtol=0)
        torch.testing.assert_close(bent.std(), image.std(), atol=1e-4, rtol=0)
        order = image.flatten().argsort()
        assert (bent.flatten()[order].diff() >= -1e-6).all()  # gamma keeps the order of intensities


def test_factors_below_and_above_1_are_equally_likely():
    image, label = torch.ones(1, 2, 2), torch.zeros(1, 2, 2)
    chosen = settings(brightness_p=1, brightness=[0.9, 3.0])
    factors = [float(augmented(image, label, chosen, rng(seed))[0].mean()) for seed in range(400)]
    assert 150 < sum(factor < 1 for factor in factors) < 250
    assert min(factors) >= 0.9
    assert max(factors) <= 3.0


def test_low_resolution_at_factor_1_is_the_image_and_below_is_smoother():
    image, label = sample(channels=4)
    same, _ = augmented(image, label, settings(low_resolution_p=1, low_resolution=[1, 1]), rng())
    torch.testing.assert_close(same, image)
    coarse, _ = augmented(image, label, settings(low_resolution_p=1, low_resolution=[0.5, 0.5]), rng(1))
    assert float(coarse.diff(dim=1).abs().mean()) < float(image.diff(dim=1).abs().mean())


@pytest.mark.parametrize("dims", [2, 3])
def test_affine_is_a_rotation_times_a_scale(dims):
    limit = np.radians(30)
    for seed in range(20):
        matrix = draw_affine(settings(rotate_p=1, scale_p=1, scale=[1.25, 1.25]), dims, rng(seed))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(dims) * 1.25**2, atol=1e-12)
        assert np.linalg.det(matrix) > 0
        if dims == 2:
            assert abs(np.arctan2(matrix[1, 0], matrix[0, 0])) <= limit
    assert draw_affine(settings(), dims, rng()) is None


def test_rotation_and_scale_are_applied_with_their_probability():
    drawn = [draw_affine(Augmentation(), 3, rng(seed)) is not None for seed in range(1000)]
    assert sum(drawn) / 1000 == pytest.approx(1 - 0.8 * 0.8, abs=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_low_resolution_leaves_the_axis_across_thick_slices(axis):
    """Stripes along it stay; the same stripes are smeared without."""
    shape = [12, 12, 12]
    stripes = (torch.arange(12) % 2).float().view([-1 if a == axis else 1 for a in range(3)]).expand(shape)
    image, label = stripes[None].contiguous(), torch.zeros((1, *shape))
    only = {key: 0 for key in Augmentation().to_plain() if key.endswith("_p")} | {"mirror_axes": []}
    changed = {"kept": 0, "smeared": 0}
    for seed in range(10):
        for name, in_plane in (("kept", axis), ("smeared", None)):
            settings = Augmentation.parse(
                {**only, "low_resolution_p": 1, "low_resolution": [0.5, 0.6], "dummy_2d_axis": in_plane}
            )
            found, _ = augmented(image, label, settings, np.random.default_rng(seed))
            changed[name] += not torch.allclose(found, image)
    assert changed["kept"] == 0
    assert changed["smeared"] > 2


def test_dropped_and_absent_channels_are_zero_and_one_channel_stays() -> None:
    chosen = Augmentation(drop_channel_p=0.6, noise_p=1.0, brightness_p=1.0, gamma_p=1.0)
    emptied = set()
    for seed in range(40):
        image = torch.randn(3, 6, 6, 6, generator=torch.Generator().manual_seed(seed))
        image[1] = 0
        patch = Patch(image, torch.zeros(1, 6, 6, 6, dtype=torch.int64))
        changes = draw_changes(chosen, image.shape, rng(seed), absent=(1,))
        assert 1 in changes.emptied
        assert len(changes.emptied) < 3
        found = apply_changes(patch, changes).image
        assert [bool(channel.any()) for channel in found] == [n not in changes.emptied for n in range(3)]
        emptied.add(changes.emptied)
    assert emptied == {(1,), (0, 1), (1, 2)}


def test_without_dropping_the_random_numbers_are_the_same_as_for_complete_cases() -> None:
    chosen, shape = Augmentation(noise_p=1.0, gamma_p=1.0), (2, 5, 5, 5)
    one, other = (draw_changes(chosen, shape, rng(1), absent) for absent in ((), (1,)))
    assert one.gamma == other.gamma
    assert one.flipped == other.flipped
    assert (one.emptied, other.emptied) == ((), (1,))


def test_emptied_channels_do_not_change_the_case() -> None:
    image = torch.ones(2, 4, 4, 4)
    apply_changes(Patch(image, torch.zeros(1, 4, 4, 4, dtype=torch.int64)), Changes(emptied=(0,)))
    assert image.all()
