"""ONNX Runtime and OpenVINO in the place of PyTorch: the same labels, the same memory budget, one message where they cannot."""

from __future__ import annotations

import importlib
import os
import sys

import numpy as np
import pytest
import torch

from medseg.errors import ConfigError, ModelError
from medseg.inference.engines.engine_model import on_engine
from medseg.inference.engines.runtimes import without_telemetry
from medseg.model_folder.settings import PredictSettings
from medseg.models import build_model
from tests.helpers.volumes import small_phantom

needs_openvino = pytest.mark.extra("openvino")
ENGINES = ["onnx", pytest.param("openvino", marks=needs_openvino)]


def share_of_equal_voxels(first, second) -> float:
    return float(np.mean(first.data == second.data))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_labels_are_those_of_pytorch(make_predictor, engine):
    image = small_phantom()
    for dims in (3, 2):
        predictor = make_predictor(dims, slice_axis=0 if dims == 2 else 2, batch_size=2)
        expected = predictor(image)
        assert len(np.unique(expected.data)) > 2
        other = predictor.with_settings(engine=engine)
        found = other(image)
        assert share_of_equal_voxels(found, expected) >= 0.999
        assert "EngineModel" in type(other.model).__name__
        assert found.grid.affine.tobytes() == expected.grid.affine.tobytes()
        again = other.with_settings(engine="torch")(image)
        assert np.array_equal(again.data, expected.data)


def test_each_size_of_images_starts_the_engine_once(monkeypatch):
    started = []

    def start(model, size):
        started.append(size)
        return lambda image: model(torch.from_numpy(image)).detach().numpy()

    monkeypatch.setattr("medseg.inference.engines.engine_model.run_with_onnx", start)
    network = build_model("unet_2d", in_channels=1, num_classes=3, channels=[4, 8])
    model = on_engine(network, "onnx", "auto", torch.device("cpu"))
    with torch.inference_mode():
        for size in ((8, 8), (12, 8), (8, 8)):
            image = torch.randn(2, 1, *size)
            assert torch.equal(model(image), network(image))
    assert started == [(8, 8), (12, 8)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int8"}, "found int8 with engine=torch, expected engine=openvino"),
        ({"engine": "onnx", "precision": "int8"}, "expected one of auto, float32 with engine=onnx"),
        ({"engine": "openvino", "precision": "bfloat16"}, "auto, float32, int8 with engine=openvino"),
        ({"engine": "onnx", "compile": True}, "compile: found true, expected false"),
    ],
)
def test_formats_that_an_engine_does_not_have_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PredictSettings().merged(settings)


def test_a_model_without_an_8_bit_network_names_the_command(make_predictor):
    with pytest.raises(ModelError, match="medseg quantize MODEL --data DATASET"):
        make_predictor().with_settings(engine="openvino", precision="int8")


def test_other_engines_run_on_processors_only():
    model = build_model("unet_2d", in_channels=1, num_classes=3, channels=[4, 8])
    with pytest.raises(ConfigError, match="found onnx on meta, expected a processor"):
        on_engine(model, "onnx", "auto", torch.device("meta"))


def test_instances_need_pytorch(make_predictor, monkeypatch):
    predictor = make_predictor(2)
    monkeypatch.setattr(predictor.model, "instances", lambda *_: [], raising=False)
    monkeypatch.setattr(predictor, "saved", predictor.saved.replace(predict={"engine": "onnx"}))
    with pytest.raises(ConfigError, match="expected torch for instances"):
        predictor.instances(small_phantom())


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_missing_packages_are_named(make_predictor, monkeypatch, engine, package):
    monkeypatch.setattr(
        "medseg.inference.engines.onnx_graph.find_spec", lambda name: None if name == package else True
    )
    with pytest.raises(ModelError, match=rf"engine={engine}: .*{package}.*medseg\[{engine}\]"):
        make_predictor().with_settings(engine=engine)


def test_the_package_that_sends_usage_statistics_cannot_be_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    monkeypatch.setenv("NNCF_CI", "")
    without_telemetry()
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
    assert os.environ["NNCF_CI"] == "1"
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
