"""Plans of nnU-Net: inheritance, tables of names, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from medseg.data.preprocessing.normalize import Normalization
from medseg.errors import MedsegError
from medseg.interop.nnunet.plans import _modern, read_plans
from tests.helpers.nnunet_models import architecture, configuration, plans_of

FULL = configuration([16, 16, 12], [1.0, 1.0, 2.0], architecture(3), ["CTNormalization"], [False])
PLANS = plans_of({"3d_fullres": FULL})


def read(tmp_path: Path, plans: dict[str, Any], name: str = "3d_fullres"):
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    return read_plans(tmp_path / "plans.json", name)


def with_value(place: str, value: Any) -> dict[str, Any]:
    """The plans with another value at a dotted place of the configuration, or of the whole with a leading dot."""
    plans = copy.deepcopy(PLANS)
    node: Any = plans if place.startswith(".") else plans["configurations"]["3d_fullres"]
    *parents, leaf = place.strip(".").split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return plans


def test_published_plans_are_read(shared_reference):
    path = shared_reference / "nnunet_plans_hippocampus.json"
    full, flat = read_plans(path, "3d_fullres"), read_plans(path, "2d")
    assert full.configuration.patch_size == (40, 56, 40)
    assert full.configuration.architecture.kind == "plain"
    assert flat.configuration.architecture.arch_kwargs.dims == 2
    assert flat.normalizations() == (Normalization(method="zscore"),)
    model = full.configuration.architecture.model((2, 1, 0))
    assert [stage["channels"] for stage in model["encoder_stages"]] == [32, 64, 128, 256]


def test_children_override_their_parents(tmp_path):
    plans = copy.deepcopy(PLANS)
    plans["configurations"] |= {
        "child": {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]},
        "grandchild": {"inherits_from": "child", "spacing": [3.0, 3.0, 3.0]},
    }
    found = read(tmp_path, plans, "grandchild").configuration
    assert (found.patch_size, found.spacing) == ((8, 8, 8), (3.0, 3.0, 3.0))
    assert found.architecture == read(tmp_path, plans).configuration.architecture


def test_circular_inheritance_raises(tmp_path):
    plans = {**PLANS, "configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(MedsegError, match=r"configurations inherit in a circle: a -> b -> a"):
        read(tmp_path, plans, "a")


@pytest.mark.parametrize(
    ("scheme", "masked", "expected"),
    [
        ("CTNormalization", True, Normalization(method="ct", mean=40, std=120, low=-250, high=330)),
        ("ZScoreNormalization", True, Normalization(method="zscore_mask")),
        ("ZScoreNormalization", False, Normalization(method="zscore")),
        ("NoNormalization", False, Normalization(method="none")),
        ("RescaleTo01Normalization", False, Normalization(method="rescale")),
        ("RGBTo01Normalization", False, Normalization(method="rgb")),
    ],
)
def test_normalisation_schemes_are_translated(tmp_path, scheme, masked, expected):
    plans = with_value("normalization_schemes", [scheme])
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [masked]
    assert read(tmp_path, plans).normalizations() == (expected,)


def test_ct_without_statistics_raises(tmp_path):
    plans = with_value(".foreground_intensity_properties_per_channel", {})
    with pytest.raises(MedsegError, match="found no channel 0, expected its statistics"):
        read(tmp_path, plans).normalizations()


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("architecture.network_class_name", "os.system", "unknown network, expected one of .*PlainConvUNet"),
        ("architecture.arch_kwargs.conv_op", "builtins.eval", "unknown convolution"),
        ("architecture.arch_kwargs.norm_op", "torch.nn.LayerNorm", "unknown norm"),
        ("architecture.arch_kwargs.norm_op", "torch.nn.InstanceNorm2d", "does not fit conv_op"),
        ("architecture.arch_kwargs.nonlin", "torch.nn.GELU", "unknown activation"),
        ("architecture.arch_kwargs.dropout_op", "torch.nn.Dropout3d", "dropout_op"),
        ("architecture.arch_kwargs.nonlin_first", True, "nonlin_first"),
        ("architecture.arch_kwargs.norm_op_kwargs", {"eps": 1e-3, "affine": True}, "expected 1e-5"),
        ("architecture.arch_kwargs.bottleneck_channels", 8, "bottleneck_channels: unknown key"),
        ("architecture.arch_kwargs.strides", [[1, 1, 1]], "strides has 1 entries, expected 3"),
        (
            "architecture.arch_kwargs.strides",
            [[2, 2, 2]] * 3,
            r"strides: found \[2, 2, 2\] for the first stage",
        ),
        ("architecture.arch_kwargs.kernel_sizes", [[3, 3]] * 3, r"kernel_sizes: found \[3, 3\], expected 3"),
        ("architecture.arch_kwargs.n_stages", 10**9, "n_stages"),
        ("architecture.arch_kwargs.n_conv_per_stage", None, "found no n_conv_per_stage, expected a number"),
        (
            "resampling_fn_data",
            "resample_torch_fornnunet",
            "unknown resampling, expected one of resample_data",
        ),
        ("resampling_fn_probabilities", "no_resampling_hack", "unknown resampling"),
        ("resampling_fn_data_kwargs.order", 1, "order"),
        ("resampling_fn_probabilities_kwargs.force_separate_z", True, "force_separate_z"),
        ("preprocessor_name", "MyPreprocessor", "unknown preprocessor"),
        ("normalization_schemes", ["MyNormalization"], "unknown normalisation"),
        ("use_mask_for_norm", [], "differ in length"),
        ("patch_size", [16, 16], "patch_size has 2 entries, expected 3"),
        ("spacing", [1, 1, 0], "greater than 0"),
        ("inherits_from", "nowhere", "found no 'nowhere', expected one of 3d_fullres"),
        (".transpose_forward", [0, 0, 1], "expected 0, 1 and 2 in some order"),
        (".image_reader_writer", "MyReader", "unknown reader"),
        (".label_manager", "MyLabels", "unknown label manager"),
        (".configurations", 3, "found no '3d_fullres'"),
    ],
)
def test_unsupported_plans_raise(tmp_path, place, value, told):
    with pytest.raises(MedsegError, match=told) as caught:
        read(tmp_path, with_value(place, value))
    assert "plans.json" in str(caught.value)


OLD = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "unet_max_num_features": 320,
    "n_conv_per_stage_encoder": [2, 2],
    "n_conv_per_stage_decoder": [2],
    "pool_op_kernel_sizes": [[1, 1], [2, 2]],
    "conv_kernel_sizes": [[3, 3], [3, 3]],
    "patch_size": [16, 16],
}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("patch_size", "16x16"),
        ("n_conv_per_stage_encoder", 2),
        ("UNet_base_num_features", "32"),
        ("unet_max_num_features", None),
    ],
)
def test_wrong_types_of_the_older_form_are_left_for_the_schema_to_name(key, wrong):
    assert "architecture" in _modern(dict(OLD))
    values = {**OLD, key: wrong}
    assert _modern(dict(values)) == values
