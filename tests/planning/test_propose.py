"""Plans in medseg's order of axes, with what keeps small datasets trainable."""

from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.planning.memory_budget import MemoryBudget
from medseg.planning.nnunet.presets import PRESETS, find_preset
from medseg.planning.nnunet.sizing import size_network
from medseg.planning.nnunet.small_datasets import adapted_to_small_data, with_two_stages
from medseg.planning.nnunet.topology import plan_topology
from medseg.planning.propose import propose
from tests.helpers.golden_plans import DATASETS, as_lists

UNET = PRESETS["unet"]
EIGHT = MemoryBudget(8, "a test", on_gpu=True)


def test_thick_axial_slices_come_out_last(make_fingerprint):
    """The golden MR of 24 slices at 5 mm, whose planner's order is z, y, x."""
    golden = DATASETS["mr_aniso_24"]["plans"]["unet"]["configurations"]["3d_fullres"]
    found = propose(make_fingerprint((320, 320, 24), (0.6, 0.6, 5.0), 60), UNET, EIGHT)
    assert (found.kind, found.slice_axis) == ("3d", 2)
    assert found.spacing == (0.6, 0.6, 5.0)
    assert found.median_shape == (320, 320, 24)
    assert list(found.patch[::-1]) == golden["patch_size"]
    assert [stride[::-1] for stride in as_lists(found.strides)] == golden["strides"]
    assert [kernel[::-1] for kernel in as_lists(found.kernels)] == golden["kernel_sizes"]
    assert found.kernels[0] == (3, 3, 1)


def test_sagittal_slices_come_out_first(make_fingerprint):
    """Golden: z, y, x of 0.9, 0.9, 6 mm and 256, 240, 22 voxels, planned as x, z, y: patch 24, 256, 256."""
    found = propose(make_fingerprint((22, 240, 256), (6.0, 0.9, 0.9), 50), UNET, EIGHT)
    assert (found.slice_axis, found.spacing, found.patch) == (0, (6.0, 0.9, 0.9), (24, 256, 256))
    assert found.median_shape == (22, 240, 256)
    assert found.strides[1] == (1, 2, 2)
    assert found.kernels[0] == (1, 3, 3)


def test_coronal_slices_keep_the_two_other_axes_apart(make_fingerprint):
    """Golden: z, y, x of 320, 20, 300 voxels, planned as y, z, x: patch 20, 320, 256 in 3D."""
    fingerprint = make_fingerprint((300, 20, 320), (0.7, 4.0, 0.7), 50)
    found = propose(fingerprint, UNET, EIGHT)
    assert (found.slice_axis, found.patch) == (1, (256, 20, 320))
    assert found.median_shape == (300, 20, 320)
    flat = propose(make_fingerprint((300, 20, 200), (0.7, 4.0, 0.7), 50), UNET, EIGHT, "2d")
    assert (flat.dims, flat.slice_axis, flat.spacing) == (2, 1, (0.7, 4.0, 0.7))
    assert flat.patch == (320, 224)  # x, z
    assert flat.median_shape == (300, 20, 200)
    assert flat.batch_dice


def test_single_slices_are_planned_in_2d_whatever_their_depth(make_case, make_fingerprint):
    """Golden: 30 pictures of 224 x 320 (y, x)."""
    golden = DATASETS["two_d_rgb_small"]["plans"]["unet"]["configurations"]["2d"]
    cases = [make_case(f"case_{n:02d}", shape=(320, 224, 1), spacing=(1.0, 1.0, 1.0 + n)) for n in range(30)]
    fingerprint = make_fingerprint(cases=cases, labels=2)
    found = propose(fingerprint, UNET, EIGHT)
    assert found.kind == "2d"
    assert list(found.patch[::-1]) == golden["patch_size"]
    assert found.batch_size == golden["batch_size"]
    assert found.spacing == (1.0, 1.0, 30.0)  # no file gets a second slice
    for kind in ("3d", "lowres"):
        with pytest.raises(ConfigError, match="holds single slices"):
            propose(fingerprint, UNET, EIGHT, kind)


def test_a_low_resolution_only_where_it_helps(make_fingerprint):
    golden = DATASETS["lowres_kept"]["plans"]["unet"]["configurations"]
    large = make_fingerprint((260, 260, 260), count=60, labels=2)
    full, low = propose(large, UNET, EIGHT), propose(large, UNET, EIGHT, "lowres")
    assert full.low_resolution
    assert full.batch_dice
    assert not low.batch_dice
    assert low.spacing == pytest.approx(tuple(golden["3d_lowres"]["spacing"]), rel=1e-4)
    assert list(low.patch) == golden["3d_lowres"]["patch_size"]
    assert low.covered > 0.25 > full.covered
    with pytest.raises(ConfigError, match="already holds enough"):
        propose(make_fingerprint((100, 100, 100)), UNET, EIGHT, "lowres")


def test_a_batch_is_no_larger_than_the_dataset(make_fingerprint):
    fingerprint = make_fingerprint((36, 50, 35), count=20)
    planned = size_network((1, 1), (50, 36), 36 * 50 * 35 * 20, 3, PRESETS["resenc-l"])
    assert planned.batch_size > 400
    found = propose(fingerprint, PRESETS["resenc-l"], MemoryBudget(24, "a test", on_gpu=True), "2d")
    assert (found.batch_size, found.batch_limit) == (20, "cases")
    assert adapted_to_small_data(planned, 1, 3, PRESETS["resenc-l"]).batch_size == 2
    assert adapted_to_small_data(planned, 10**6, 3, PRESETS["resenc-l"]) == planned


def test_tiny_volumes_get_a_network_that_can_be_trained(make_fingerprint):
    """nnU-Net plans one stage here, whose training fails, and two below 16 voxels, whose loss is not a number."""
    found = propose(make_fingerprint((7, 7, 7), count=70), UNET, EIGHT)
    assert found.patch == (8, 8, 8)
    assert found.strides == ((1, 1, 1), (2, 2, 2))
    assert found.channels == (32, 64)
    assert not found.deep_supervision
    assert not propose(make_fingerprint((12, 12, 12), count=70), UNET, EIGHT).deep_supervision
    assert propose(make_fingerprint((16, 16, 16), count=70), UNET, EIGHT).deep_supervision


def test_growing_a_patch_spares_its_coarse_axes():
    spacing = (5.0, 1.0, 1.0)
    grown = with_two_stages(plan_topology(spacing, (3, 6, 7)), spacing)
    assert grown.strides == ((1, 1, 1), (1, 2, 2))
    assert grown.patch == (3, 8, 8)
    lonely = (5.0, 5.0, 1.0)
    assert with_two_stages(plan_topology(lonely, (3, 3, 8)), lonely).num_stages == 2
    whole = plan_topology((1, 1, 1), (16, 16, 16))
    assert with_two_stages(whole, (1, 1, 1)) is whole


def test_noise_of_headers_is_left_out_of_spacings(make_fingerprint):
    found = propose(make_fingerprint(spacing=(1.1999862, 0.7832031, 2.5000119)), UNET, EIGHT)
    assert found.spacing == (1.2, 0.7832, 2.5)
    found = propose(make_fingerprint(spacing=(0.99997, 0.78125, 1.015625)), UNET, EIGHT)
    assert found.spacing == (1.0, 0.78125, 1.0156)


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'resenc-xl'"):
        find_preset("resenc-xxl")
