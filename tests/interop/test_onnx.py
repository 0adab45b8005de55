"""ONNX files give PyTorch's logits, and say what must be done around the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from medseg.cli.main import main
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ModelError
from medseg.inference.engines.onnx_graph import to_onnx
from medseg.interop.onnx import Parity, export_onnx, metadata
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import load_model, save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.base import Model
from medseg.models.layers.norms import GroupNorm, InstanceNorm
from tests.helpers.networks import randomise

pytestmark = pytest.mark.slow

LABELS = Labels.from_names({"background": 0, "liver": 5, "spleen": 7})
TOY = {"channels": [4, 8], "num_blocks": 1}


@pytest.fixture(autouse=True, scope="module")
def operators_are_read_once() -> Iterator[None]:
    """Keep torch's table of ONNX operators, which it would read from source files again for every export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def write_folder(
    folder: Path,
    name: str,
    *,
    window=None,
    in_channels: int = 1,
    slice_axis: int = 2,
    labels=LABELS,
    **options,
) -> Path:
    """Write a model folder of a network with random weights."""
    model = randomise(build_model(name, in_channels=in_channels, num_classes=labels.num_outputs, **options))
    sizes = list(window or (8,) * model.spatial_dims)
    if model.spatial_dims == 2:
        sizes.insert(slice_axis, 1)
    saved = SavedModel(
        medseg="0",
        name="toy",
        model={"name": name, **options},
        channel_names=tuple(f"channel {i}" for i in range(in_channels)),
        preprocessing=Preprocessing(
            spacing=(1.0, 2.0, 3.0), channels=(Normalization(method="zscore"),) * in_channels
        ),
        window=sizes,
        slice_axis=slice_axis,
    )
    save_model(folder, model, saved, labels)
    return folder


@pytest.fixture
def make_folder(tmp_path):
    """Function that writes a model folder."""
    return partial(write_folder, tmp_path / "model")


@dataclass(frozen=True)
class Exported:
    """A model folder, the file that the command wrote for it, and what the command printed."""

    folder: Path
    file: Path
    output: str
    errors: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """A model of slices along the second axis with two channels, and its file; tests must not change them."""
    place = tmp_path_factory.mktemp("exported")
    folder = write_folder(place / "model", "unet_2d", window=(8, 16), in_channels=2, slice_axis=1, **TOY)
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        assert main(["export", "onnx", str(folder), "-o", str(place / "toy.onnx")]) == 0
    return Exported(folder, place / "toy.onnx", output.getvalue(), errors.getvalue())


def sessions_logits(file, image: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(file).run(["logits"], {"image": image})[0]


def assert_same(folder, file, *shape: int) -> None:
    """Compare by a session and an input of the test's own, not by what the export measured."""
    model, _, _ = load_model(folder)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = model.eval()(image).numpy()
    found = sessions_logits(file, image.numpy())
    assert found.dtype == np.float32
    assert expected.std() > 0.01
    assert np.abs(found - expected).max() < 1e-4


OPTIONS = {
    "attention_unet_2d": {
        "norm": "batch",
        "upsample": "nearest",
        "downsample": "avgpool",
        "gate": {"include_shallowest": True, "num_coefficients": 2, "resample": "nearest"},
    },
    "resunet_3d": {"upsample": "pixelshuffle", "norm": "layer", "strides": [1, [1, 2, 2]]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_unets_with_padded_windows_are_exported(name, make_folder, tmp_path):
    window = (9, 8, 10)[: 2 if name.endswith("2d") else 3]
    folder = make_folder(name, window=window, in_channels=2, **(TOY | OPTIONS[name]))
    parity = export_onnx(folder, tmp_path / "toy.onnx")
    assert 0 < parity.difference < 1e-4 < parity.largest
    assert parity.shapes == ((1, 2, *window), (2, 2, *window))
    assert_same(folder, tmp_path / "toy.onnx", 3, 2, *window)


class Many(Model):
    """Several networks side by side, their logits one behind the other: many options for the price of one export."""

    def __init__(self, members: list[Model]) -> None:
        first = members[0]
        super().__init__(spatial_dims=first.spatial_dims, in_channels=1, num_classes=len(members) * 2)
        self.members = nn.ModuleList(members)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([member(image) for member in self.members], dim=1)


# With the exports of the other tests, every value of every option.
COMBINATIONS: tuple[dict[str, Any], ...] = (
    {"norm": "none", "block": "convnext", "upsample": "linear", "downsample": "maxpool", "skip_merge": "add"},
    {
        "norm": "group",
        "block": "basic",
        "upsample": "transpose",
        "downsample": "conv",
        "skip_merge": "concat",
    },
)


def test_combinations_of_options_are_exported():
    members = [
        randomise(
            build_model("unet_3d", in_channels=1, num_classes=2, upsample_channels=[4], **TOY, **options)
        )
        for options in COMBINATIONS
    ]
    graph = to_onnx(Many(members), (8, 8, 8), {}, dynamic=False)
    image = torch.randn(1, 1, 8, 8, 8)
    found = sessions_logits(graph.SerializeToString(), image.numpy())
    for i, (options, member) in enumerate(zip(COMBINATIONS, members, strict=True)):
        with torch.no_grad():
            expected = member(image).numpy()
        assert expected.std() > 0.01, options
        assert np.abs(found[:, 2 * i : 2 * i + 2] - expected).max() < 1e-4, options


def test_individual_stages_are_exported(make_folder, tmp_path):
    """Self-attention, dilation, a stem, a bottleneck; and a deepest map of one voxel, which lies in every layout."""
    stages = [
        {"channels": 4, "num_blocks": 1, "dilation": 2},
        {"channels": 64, "num_blocks": 1, "stride": [2, 4, 4], "use_attention": True},
    ]
    options = {"encoder_stages": stages, "norm": "layer", "stem_channels": 4, "bottleneck": "infer"}
    folder = make_folder("unet_3d", window=(2, 4, 4), **options)
    export_onnx(folder, tmp_path / "toy.onnx")
    assert_same(folder, tmp_path / "toy.onnx", 1, 1, 2, 4, 4)


def test_monai_network_is_exported(make_folder, tmp_path):
    folder = make_folder("monai_unet_2d", channels=[4, 6], num_res_units=1)
    export_onnx(folder, tmp_path / "toy.onnx")
    assert_same(folder, tmp_path / "toy.onnx", 1, 1, 8, 8)


def test_channels_last_weights_are_exported_in_the_default_layout():
    """In channels-last on the processor a 1×1×1 convolution is a matrix product, which other runtimes do slowly."""
    model = build_model("unet_3d", in_channels=1, num_classes=2, norm="batch", **TOY)
    graph = to_onnx(model.to(memory_format=torch.channels_last_3d), (8, 8, 8), {}, dynamic=False)
    operations = {node.op_type for node in graph.graph.node}
    assert "Conv" in operations
    assert not operations & {"MatMul", "Gemm", "Transpose"}


class TwoNorms(Model):
    """Instance norm and group norm of one image, side by side."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=3, in_channels=2, num_classes=4)
        self.instance, self.group = randomise(InstanceNorm(2)), randomise(GroupNorm(2))
        self.group.num_groups = 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.instance(image), self.group(image)], dim=1)


def test_norms_of_large_feature_maps_are_exact():
    """Where onnxruntime's own instance norm is wrong by more than 1e-3: many voxels, a mean beside zero."""
    model = TwoNorms()
    graph = to_onnx(model, (112, 112, 112), {}, dynamic=False)
    image = torch.rand(1, 2, 112, 112, 112) + 1
    found = torch.from_numpy(sessions_logits(graph.SerializeToString(), image.numpy()))
    with torch.no_grad():
        expected = model.double()(image.double())
    assert (found - expected).abs().max() < 2e-5


def test_dynamic_sizes_are_exported(make_folder, tmp_path):
    options = {**TOY, "strides": [1, [1, 2, 2]], "channels": [4, 8]}
    folder = make_folder("attention_unet_3d", window=(3, 6, 7), **options)
    parity = export_onnx(folder, tmp_path / "toy.onnx", dynamic=True)
    assert parity.shapes == ((1, 1, 3, 6, 8), (2, 1, 3, 6, 8), (1, 1, 4, 8, 10))
    assert_same(folder, tmp_path / "toy.onnx", 2, 1, 7, 12, 4)
    shape = onnx.load(tmp_path / "toy.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 1, "x", "2*y", "2*z"]


def test_metadata_describes_preprocessing_and_labels_without_paths(exported):
    session = onnxruntime.InferenceSession(exported.file)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 2, 8, 16], "tensor(float)")
    assert (logits.name, logits.shape) == ("logits", ["batch", 3, 8, 16])
    notes = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert all(key.startswith("medseg.") for key in notes)
    assert notes["medseg.format"] == 1
    assert notes["medseg.labels"][1] == {"class_index": 1, "label_value": 5, "name": "liver"}
    assert [label["name"] for label in notes["medseg.labels"]] == ["background", "liver", "spleen"]
    assert notes["medseg.channel_names"] == ["channel 0", "channel 1"]
    assert notes["medseg.orientation"] == "RAS"
    assert notes["medseg.spacing"] == [1.0, 2.0, 3.0]
    assert [channel["method"] for channel in notes["medseg.normalization"]] == ["zscore", "zscore"]
    assert notes["medseg.window"] == [8, 1, 16]
    assert notes["medseg.slice_axis"] == 1
    assert notes["medseg.slices"]["channels"] == "as_is"
    assert notes["medseg.slices"]["radiological_view"] is False
    assert notes["medseg.divisor"] == [2, 2]
    assert notes["medseg.predict"]["overlap"] == 0.5
    assert b".py" not in exported.file.read_bytes()


def test_metadata_describes_regions(make_folder):
    regions = LABELS.with_regions({"both": LABELS.values[1:], "spleen": [LABELS.value_of("spleen")]})
    model, saved, labels = load_model(make_folder("unet_2d", labels=regions, **TOY))
    assert model.num_classes == 2
    notes = metadata(model, saved, labels)
    assert json.loads(notes["medseg.regions"]) == [
        {"output_index": 0, "name": "both", "label_values": [5, 7], "output_value": 5},
        {"output_index": 1, "name": "spleen", "label_values": [7], "output_value": 7},
    ]
    assert json.loads(notes["medseg.labels"])[1] == {"label_value": 5, "name": "liver"}


def test_file_with_different_logits_is_removed(exported, tmp_path, monkeypatch):
    (tmp_path / "toy.onnx").write_bytes(b"before")

    def wrong(model: Model, *_: Any, **__: Any) -> Any:
        model.eval()
        graph = onnx.load(exported.file)
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.bias")
        values = np.frombuffer(bias.raw_data, np.float32) + np.float32(0.25)
        bias.raw_data = values.tobytes()
        return graph

    monkeypatch.setattr("medseg.interop.onnx.to_onnx", wrong)
    with pytest.raises(ModelError, match=r"toy\.onnx: onnxruntime's logits differ .*found 0\.25 on logits"):
        export_onnx(exported.folder, tmp_path / "toy.onnx")
    assert (tmp_path / "toy.onnx").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["toy.onnx"]


@pytest.mark.parametrize("difference", [2e-4, float("nan"), float("inf")])
def test_parity_holds_within_its_tolerance(difference):
    assert not Parity(difference, 1.0, ()).holds
    assert Parity(1e-4, 0.1, ()).holds
    assert Parity(2e-3, 30.0, ()).holds


class Branching(Model):
    """Its way depends on the image's values, for which there is no static graph."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=1, num_classes=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum() > 0 else -image


class OneSize(Model):
    """Knows images of 16 × 16 only."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=1, num_classes=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.ones(16, 16)


def test_unsupported_models_raise(capfd):
    with pytest.raises(
        ModelError, match=r"^Branching: this model has no ONNX form \(.*\)\. Predict with medseg"
    ) as told:
        to_onnx(Branching(), (8, 8), {}, dynamic=False)
    assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match=r"OneSize: .* with free sizes .*Omit --dynamic\.$"):
        to_onnx(OneSize(), (16, 16), {}, dynamic=True)
    assert capfd.readouterr() == ("", "")


def test_window_error_of_the_model_is_reported(tmp_path, make_folder):
    folder = make_folder("unet_2d", window=(2, 2), **TOY)
    with pytest.raises(ModelError, match=r"^UNet2d: instance norm would see a single value"):
        export_onnx(folder, tmp_path / "toy.onnx")
    assert not (tmp_path / "toy.onnx").exists()


def test_too_many_weights_raise(make_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.inference.engines.onnx_graph.LARGEST", 1000)
    with pytest.raises(ModelError, match=r"bytes of weights: found [\d,]+, expected at most 1,000"):
        export_onnx(make_folder("unet_2d", **TOY), tmp_path / "toy.onnx")


def test_command_exports_a_model(exported):
    assert "toy.onnx: 0.0 MB" in exported.output
    assert "differ by at most" in exported.output
    assert "inputs 1x2x8x16, 2x2x8x16" in exported.output
    assert exported.errors == ""
    assert_same(exported.folder, exported.file, 4, 2, 8, 16)


def test_command_reports_errors(make_folder, tmp_path, capsys, monkeypatch):
    folder = make_folder("unet_2d", **TOY)

    def refusal(*words: object) -> str:
        assert main(["export", "onnx", *map(str, words)]) == 1
        return capsys.readouterr().err

    assert "expected a file name that ends with .onnx" in refusal(folder, "-o", tmp_path / "toy.pt")
    assert "inside a model folder" in refusal(folder, "-o", folder / "toy.onnx")
    assert "not a model folder" in refusal(tmp_path, "-o", tmp_path / "toy.onnx")
    monkeypatch.setattr("medseg.interop.onnx.PACKAGES", ("onnx", "no_such_package"))
    told = refusal(folder, "-o", tmp_path / "toy.onnx")
    assert told == (
        "medseg export: export onnx: packages are missing: found no no_such_package. "
        'Install them with: pip install "medseg[onnx]".\n'
    )
    assert load_model(folder)[2] == LABELS
