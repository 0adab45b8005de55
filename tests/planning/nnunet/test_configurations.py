"""Plans equal those of nnU-Net's own planners, value by value."""

from __future__ import annotations

from math import prod

import pytest
import torch

from medseg.errors import ConfigError
from medseg.models.catalog import build_model
from medseg.planning.nnunet.configurations import (
    Configurations,
    DatasetMeasures,
    normalization_schemes,
    plan_configurations,
)
from medseg.planning.nnunet.presets import PRESETS, Preset, feature_map_values, widths
from medseg.planning.nnunet.sizing import NetworkSize
from medseg.planning.nnunet.spacing import target_spacing
from medseg.planning.nnunet.topology import Topology, plan_topology
from medseg.volumes.grid import shape_at_spacing
from medseg.volumes.resampling import axis_orders
from tests.helpers.golden_plans import DATASETS, HIPPOCAMPUS, PLANS, as_lists, close, measures

FUNCTIONS = PLANS["functions"]


def check_network(found: NetworkSize, expected: dict, preset: Preset) -> None:
    stages = found.topology.num_stages
    assert list(found.patch) == expected["patch_size"]
    assert found.batch_size == expected["batch_size"]
    assert stages == expected["n_stages"]
    assert as_lists(found.topology.strides) == expected["strides"]
    assert as_lists(found.topology.kernels) == expected["kernel_sizes"]
    assert list(widths(stages, len(found.patch))) == expected["features_per_stage"]
    assert list(preset.blocks(stages)) == expected["encoder_blocks"]
    assert [preset.decoder_blocks] * (stages - 1) == expected["decoder_blocks"]
    assert close(found.spacing, expected["spacing"])
    assert close(found.median_shape, expected["median_image_size_in_voxels"])


def by_name(planned: Configurations) -> dict[str, NetworkSize]:
    named = {
        "2d": planned.config_2d,
        "3d_fullres": planned.config_3d_fullres,
        "3d_lowres": planned.config_3d_lowres,
    }
    return {name: network for name, network in named.items() if network is not None}


def test_all_plans_are_there():
    assert len(DATASETS) == 42
    assert sum(len(dataset["plans"]) for dataset in DATASETS.values()) == 159


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_planned_as_nnunet_does(name):
    values = DATASETS[name]["input"]
    for preset_name, expected in DATASETS[name]["plans"].items():
        preset = PRESETS[preset_name]
        planned = plan_configurations(measures(values), preset, values.get("gpu_memory_target_in_gb"))
        assert list(planned.order) == expected["transpose_forward"]
        assert list(planned.inverse_order) == expected["transpose_backward"]
        assert close(planned.median_spacing, expected["original_median_spacing_after_transp"])
        assert list(planned.median_shape) == expected["original_median_shape_after_transp"]
        found = normalization_schemes(values["channel_names"], values["median_relative_size_after_cropping"])
        assert as_lists(found) == expected["normalization"]
        networks = by_name(planned)
        cascade = {"3d_cascade_fullres"} if planned.config_3d_lowres else set()
        assert set(networks) | cascade == set(expected["configurations"])
        for configuration, network in networks.items():
            check_network(network, expected["configurations"][configuration], preset)
            batch_dice = configuration == "2d" or (
                configuration == "3d_fullres" and planned.config_3d_lowres is not None
            )
            assert expected["configurations"][configuration]["batch_dice"] == batch_dice


def test_hippocampus_is_planned_from_its_real_fingerprint():
    shapes = tuple(tuple(shape) for shape in HIPPOCAMPUS["shapes"])
    real = DatasetMeasures(((1.0, 1.0, 1.0),) * len(shapes), shapes, 3)
    planned = plan_configurations(real, PRESETS["unet"])
    assert list(planned.order) == HIPPOCAMPUS["order"]
    assert close(planned.median_spacing, HIPPOCAMPUS["median_spacing"])
    assert list(planned.median_shape) == HIPPOCAMPUS["median_shape"]
    assert set(by_name(planned)) == set(HIPPOCAMPUS["configurations"])
    for name, network in by_name(planned).items():
        check_network(network, HIPPOCAMPUS["configurations"][name], PRESETS["unet"])


@pytest.mark.parametrize("row", FUNCTIONS["topology"])
def test_topology(row):
    found = plan_topology(row["spacing"], row["patch_in"])
    assert as_lists(found.strides) == row["strides"]
    assert as_lists(found.kernels) == row["kernel_sizes"]
    assert list(found.patch) == row["patch_out"]
    assert list(found.divisor) == row["divisible_by"] == [2**n for n in row["num_pool_per_axis"]]


@pytest.mark.parametrize("row", FUNCTIONS["target_spacing"])
def test_target_spacing(row):
    assert close(target_spacing(row["spacings"], row["shapes_after_crop"]), row["target"])


@pytest.mark.parametrize("row", FUNCTIONS["new_shape"])
def test_shapes_at_a_spacing(row):
    found = shape_at_spacing(row["old_shape"], row["old_spacing"], row["new_spacing"])
    assert list(found) == row["new_shape"]


@pytest.mark.parametrize("row", FUNCTIONS["separate_z"])
def test_thick_slices_are_kept_apart(row):
    orders = axis_orders(3, row["current"], row["new"])
    thick = [axis for axis, order in enumerate(orders) if order == 0]
    assert thick == ([row["axis"]] if row["separate"] else [])


@pytest.mark.parametrize("row", FUNCTIONS["feature_map_size"])
def test_memory_and_network(row):
    """Both the estimate, and the number of parameters of medseg's network of this topology."""
    preset = PRESETS["resenc" if row["network"] == "ResidualEncoderUNet" else "unet"]
    strides = tuple(tuple(stride) for stride in row["strides"])
    kernels = tuple(tuple(kernel) for kernel in row["kernel_sizes"])
    divisor = tuple(prod(axis) for axis in zip(*strides, strict=True))
    topology = Topology(strides, kernels, tuple(row["patch"]), divisor)
    assert feature_map_values(topology, row["num_classes"], preset) == row["feature_map_size"]
    dims, stages = len(row["patch"]), len(strides)
    options = {"channels": widths(stages, dims), "strides": strides, "kernel_size": kernels}
    options |= {"num_blocks": preset.blocks(stages), "deep_supervision": True, "bias": True}
    if preset.residual:
        options |= {"decoder_block": "basic", "decoder_num_blocks": 1, "stem_channels": 32}
    name = f"{'resunet' if preset.residual else 'unet'}_{dims}d"
    with torch.device("meta"):
        network = build_model(name, in_channels=1, num_classes=row["num_classes"], **options)
    # nnU-Net makes a head for every decoder level; medseg leaves out the deepest, which no loss sees.
    unused = widths(stages, dims)[stages - 2] * row["num_classes"] + row["num_classes"]
    parameters = sum(weight.numel() for weight in network.parameters())
    assert parameters + unused == row["parameters"]


def test_a_patch_that_can_shrink_no_more_is_refused():
    with pytest.raises(ConfigError, match=r"does not fit the budget.*smaller preset"):
        plan_configurations(measures(DATASETS["hippocampus"]["input"]), PRESETS["resenc-l"], 1e-7)
