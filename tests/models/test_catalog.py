from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from medseg.errors import ConfigError, ModelError
from medseg.models import MODELS, UNet2d, UNetOptions, build_model, catalog, list_models, parse_options
from medseg.models.catalog import ModelOptions, register
from medseg.registry import Registry

NAMES = ["attention_unet_2d", "attention_unet_3d", "resunet_2d", "resunet_3d", "unet_2d", "unet_3d"]


def test_family_is_listed():
    assert set(NAMES) <= set(list_models())
    assert set(list_models("*unet_3d")) >= {"unet_3d", "resunet_3d", "attention_unet_3d"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_and_runs(name):
    entry = MODELS.get(name)
    assert entry.summary
    assert entry.reference
    model = build_model(name, in_channels=1, num_classes=3, channels=[4, 8, 8])
    assert (model.spatial_dims, model.in_channels, model.num_classes) == (entry.dims, 1, 3)
    assert type(model).__name__.lower() == name.replace("_", "")
    size = (9, 8, 11)[: entry.dims]
    assert model(torch.randn(1, 1, *size)).shape == (1, 3, *size)


def test_names_and_options_do_not_import_torch():
    code = (
        "import sys; from medseg.models import list_models, parse_options;"
        "import medseg.models.catalog, medseg.models.unet.config;"
        "[parse_options(name) for name in list_models('*unet*')];"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("unet_4d", {}, ["unknown model 'unet_4d'", "Did you mean"]),
        ("unet_3d", {"chanels": [1]}, ["exp.yaml", "Did you mean 'channels'?"]),
        (
            "unet_2d",
            {"channels": [4, 8], "strides": [1, [1, 2, 2]], "kernel_size": [[3, 3, 3], 3]},
            [
                "2 mistakes",
                "encoder_stages.0.kernel_size",
                "encoder_stages.1.stride",
                "expected one number or 2",
            ],
        ),
        ("unet_2d", {"final_kernel_size": [1, 1, 1]}, ["final_kernel_size", "expected one number or 2"]),
        ("unet_3d", {"bottleneck": {"channels": 8, "kernel_size": [3, 3]}}, ["bottleneck.kernel_size"]),
    ],
)
def test_invalid_options_raise(name, values, words):
    with pytest.raises(ConfigError) as caught:
        parse_options(name, values, "exp.yaml")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("in_channels", 0), ("num_classes", -1), ("num_classes", 2.0)])
def test_invalid_numbers_of_channels_raise(key, value):
    with pytest.raises(ConfigError, match=f"unet_2d: {key}: found {value}, expected an integer > 0"):
        build_model("unet_2d", **{"in_channels": 1, "num_classes": 2, key: value})


@pytest.fixture
def registry(monkeypatch):
    fresh: Registry = Registry("model", entry_point="medseg.models")
    monkeypatch.setattr(catalog, "MODELS", fresh)
    return fresh


def test_third_party_package_registers_by_entry_point(registry, monkeypatch):
    class Options(ModelOptions):
        """One width."""

        width: int = 4

        def build(self, *, in_channels, num_classes, spatial_dims):
            options = UNetOptions(channels=(self.width, self.width))
            return options.build(in_channels=in_channels, num_classes=num_classes, spatial_dims=spatial_dims)

    class Point:
        @staticmethod
        def load():
            return lambda: register(
                "theirs_2d", spatial_dims=2, summary="s", reference="r", preset={"width": 6}
            )(Options)

    monkeypatch.setattr(
        "medseg.registry.entry_points", lambda group: [Point] if group == "medseg.models" else []
    )
    assert catalog.list_models() == ["theirs_2d"]
    model = catalog.build_model("theirs_2d", in_channels=1, num_classes=2)
    assert isinstance(model, UNet2d)
    assert model.head.in_channels == 6
    assert catalog.parse_options("theirs_2d", {"width": 5}).width == 5


def test_registered_name_raises(registry):
    def enter():
        register("mine", spatial_dims=2, summary="s", reference="r")(UNetOptions)

    enter()
    with pytest.raises(ConfigError, match="'mine' is registered twice"):
        enter()


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (None, "Options: builder: found None, expected 'module:function'"),
        (
            "medseg.models.unet.network",
            "builder: found 'medseg.models.unet.network', expected 'module:function'",
        ),
        ("medseg.no_such:build", "builder 'medseg.no_such:build': there is no module 'medseg.no_such'"),
        ("medseg.models.unet.network:make", "module 'medseg.models.unet.network' has no function 'make'"),
    ],
)
def test_wrong_builder_raises(builder, message):
    class Options(ModelOptions):
        """No options."""

    if builder is not None:
        Options.builder = builder
    with pytest.raises(ModelError, match=re.escape(message)):
        Options().build(in_channels=1, num_classes=2, spatial_dims=2)
