"""How the label maps of an earlier stage are spoiled: the same as with balls, and only as told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import ball

from medseg.data.patches.perturb_first_stage import closed, dilated, eroded, opened, perturb
from medseg.data.settings import FirstStageAugmentation
from medseg.errors import ConfigError

OFF = {"morphology_p": 0, "remove_p": 0}


def settings(**changes: object) -> FirstStageAugmentation:
    return FirstStageAugmentation.parse({**OFF, **changes})


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8])
def test_changes_are_those_of_a_ball(radius):
    mask = ndimage.gaussian_filter(np.random.default_rng(radius).normal(size=(26, 24, 11)), 1.5) > 0.05
    element = ball(radius)

    def grown(m):
        return ndimage.binary_dilation(m, element)

    def shrunk(m):
        return ndimage.binary_erosion(m, element, border_value=1)

    assert np.array_equal(dilated(mask, radius), grown(mask))
    assert np.array_equal(eroded(mask, radius), shrunk(mask))
    assert np.array_equal(closed(mask, radius), shrunk(grown(mask)))
    assert np.array_equal(opened(mask, radius), grown(shrunk(mask)))


@pytest.mark.parametrize("radius", [1.0, 1.4142136, 2.7, 6.31, 15.0])
def test_radii_between_voxels_are_distances(radius):
    mask = np.random.default_rng(0).random((21, 40, 23)) > 0.999
    assert 0 < mask.sum() < 100
    assert np.array_equal(dilated(mask, radius), ndimage.distance_transform_edt(~mask) <= radius)


def test_empty_and_full_masks_are_unchanged():
    for change in (dilated, eroded, closed, opened):
        assert not change(np.zeros((4, 5, 6), bool), 3).any()
        assert change(np.ones((4, 5, 6), bool), 3).all()  # outside of a patch the label goes on


def scene() -> np.ndarray:
    classes = np.zeros((30, 30, 30), np.uint8)
    classes[4:12, 4:12, 4:12] = 1
    classes[12:20, 4:12, 4:12] = 2
    classes[22:25, 22:25, 22:25] = 3
    return classes


def test_voxels_gained_by_a_label_are_lost_by_others():
    seen = set()
    beyond = ndimage.distance_transform_edt(scene() == 0) > 9  # three changes of 3 voxels
    for seed in range(60):
        classes = scene()
        perturb(
            classes,
            settings(morphology_p=1, morphology_label_p=1, radius=(2, 3)),
            np.random.default_rng(seed),
        )
        assert set(np.unique(classes)) <= {0, 1, 2, 3}
        sizes = tuple(np.sign(int((classes == v).sum()) - int((scene() == v).sum())) for v in (1, 2, 3))
        seen.add(sizes)
        assert not classes[beyond].any()
    assert {(1, -1), (-1, 1)} <= {pair[:2] for pair in seen}
    assert {-1, 1} <= {sizes[2] for sizes in seen}


def test_label_is_reshaped_in_its_box_as_in_the_whole_image():
    """Only the box that a change can reach is looked at, also at the border of the patch."""
    for place in ((0, 9, 3), (13, 15, 20), (24, 24, 0)):
        start = np.zeros((30, 28, 26), np.uint8)
        box = tuple(slice(p, p + 5) for p in place)
        start[box] = np.random.default_rng(1).random(start[box].shape) > 0.2
        start *= 4
        for seed in range(25):
            changed = start.copy()
            perturb(
                changed,
                settings(morphology_p=1, morphology_label_p=1, radius=(1, 6)),
                np.random.default_rng(seed),
            )
            rng = np.random.default_rng(seed)
            rng.random(), rng.permutation([4]), rng.random()  # the draws before those of the change
            change = (dilated, eroded, closed, opened)[int(rng.integers(4))]
            assert np.array_equal(changed == 4, change(start == 4, rng.uniform(1, 6)))


def test_one_small_component_is_removed():
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[:10] = 1  # half of the patch
    classes[15, 15, 15] = classes[16, 16, 16] = 1  # one part, over an edge
    classes[12:14, :2, :2] = 1
    left = set()
    for seed in range(20):
        changed = classes.copy()
        perturb(changed, settings(remove_p=1, remove_label_p=1), np.random.default_rng(seed))
        assert (changed[:10] == 1).all()
        left.add((bool(changed[15, 15, 15]), bool(changed[16, 16, 16]), bool(changed[12, 0, 0])))
    assert left == {(True, True, False), (False, False, True)}


def test_probabilities_are_kept_and_randomness_comes_from_the_generator():
    changes = 0
    for seed in range(300):
        one, other = scene(), scene()
        perturb(one, FirstStageAugmentation(), np.random.default_rng(seed))
        perturb(other, FirstStageAugmentation(), np.random.default_rng(seed))
        assert np.array_equal(one, other)
        changes += not np.array_equal(one, scene())
    untouched = (1 - 0.4 * (1 - 0.5**3)) * (1 - 0.2 * (1 - 0.5**3))  # but for openings that change nothing
    assert 300 * (1 - untouched) * 0.7 < changes < 300 * (1 - untouched) * 1.2
    still = scene()
    perturb(still, settings(), np.random.default_rng(0))
    assert np.array_equal(still, scene())


def test_a_label_that_another_grew_over_is_left_out():
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[5:15, 5:15, 5:15] = 1
    classes[10, 10, 10] = 2
    for seed in range(40):
        perturb(
            classes.copy(),
            settings(morphology_p=1, morphology_label_p=1, radius=(6, 8)),
            np.random.default_rng(seed),
        )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"radius": [3, 2]}, "radius: expected the smaller number first"),
        ({"radius": [0.5, 2]}, "radius"),
        ({"remove_p": 2}, "remove_p"),
    ],
)
def test_invalid_settings_raise(values, told):
    with pytest.raises(ConfigError, match=told):
        FirstStageAugmentation.parse(values)
