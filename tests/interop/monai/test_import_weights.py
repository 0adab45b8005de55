"""Weights of MONAI's networks become model folders that give MONAI's own logits."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import monai.networks.nets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import medseg
from medseg.cli.models import import_monai as command
from medseg.data.preprocessing.prepare import prepare
from medseg.errors import ConfigError, ModelError
from medseg.inference.reference_output import FILE as REFERENCE
from medseg.interop.monai.import_weights import import_monai, read_state
from medseg.interop.monai.networks import NETWORKS
from medseg.io.files import write
from medseg.model_folder.folder import load_model
from tests.helpers.networks import randomise
from tests.helpers.payload import Payload

CHANNELS = {"in_channels": 2, "out_channels": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"channels": [4, 6, 8], "strides": [2, 2], "num_res_units": 2}),
    "unet_plain": (
        "unet",
        {
            "channels": [4, 6, 8],
            "strides": [2, 1],
            "norm": "batch",
            "act": ["LeakyReLU", {"negative_slope": 0.2}],
        },
    ),
    "unet_other": (
        "unet",
        {
            "channels": [4, 6, 8],
            "strides": [2, 2],
            "num_res_units": 1,
            "kernel_size": 5,
            "up_kernel_size": 5,
            "norm": ["INSTANCE", {"affine": True}],
            "act": "relu",
            "bias": False,
            "adn_ordering": "AN",
        },
    ),
    "attentionunet": ("attentionunet", {"channels": [4, 6, 8], "strides": [2, 2]}),
    "basicunet": ("basicunet", {"features": [4, 4, 6, 8, 8, 5], "norm": ["batch", {"affine": True}]}),
    "basicunet_group": (
        "basicunet",
        {"features": [4] * 6, "norm": ["group", {"num_groups": 4}], "bias": False, "act": "relu"},
    ),
    "dynunet": (
        "dynunet",
        {
            "kernel_size": [3, 5, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 6, 8],
            "deep_supervision": True,
        },
    ),
    "dynunet_res": (
        "dynunet",
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 6, 8, 10],
            "res_block": True,
            "trans_bias": True,
            "norm_name": "BATCH",
            "act_name": "swish",
        },
    ),
}


class Sources:
    """The files of one import."""

    def __init__(self, folder: Path) -> None:
        self.weights, self.config = folder / "state.pt", folder / "network.yaml"
        self.labels, self.model = folder / "labels.tsv", folder / "model"
        self.labels.write_text("value\tname\n0\tbackground\n3\tliver\n4\ttumour\n")
        self.values: dict[str, Any] = {}

    def write(self, network: str, dims: int, arguments: dict[str, Any], window: int = 16) -> nn.Module:
        given = {"spatial_dims": dims, **CHANNELS, **arguments}
        self.values = {
            "name": "theirs",
            "network": given,
            "channel_names": ["CT", "PET"],
            "preprocessing": {"spacing": [2.0, 2.0, 2.0], "channels": [{"method": "zscore"}] * 2},
            "window": [window, window, window if dims == 3 else 1],
            "predict": {"overlap": 0.25, "precision": "float32"},
        }
        theirs = randomise(getattr(monai.networks.nets, NETWORKS[network][1])(**_tuples(given))).eval()
        torch.save(theirs.state_dict(), self.weights)
        self.change()
        return theirs

    def change(self, **values: Any) -> None:
        """Write the config with other values; those of the network as ``network={...}``."""
        network = {**self.values["network"], **values.pop("network", {})}
        self.config.write_text(json.dumps({**self.values, "network": network, **values}))

    def imported(self, network: str, **more: Any) -> float:
        """Import without a reference output, which takes most of the time and is written in the test of the command."""
        with mock.patch("medseg.interop.monai.import_weights.write_reference"):
            return import_monai(self.weights, network, self.config, self.labels, self.model, **more)


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_monai(case, dims, sources):
    network, arguments = CASES[case]
    theirs = sources.write(network, dims, arguments)
    assert sources.imported(network) < 1e-5
    model, saved, labels = load_model(sources.model)
    image = torch.randn(2, 2, *(16, 32, 48)[:dims], generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = theirs(image)
        found = model.eval()(image)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() < 1e-5
    assert labels.values == (0, 3, 4)
    assert saved.window == (16, 16, 16 if dims == 3 else 1)
    assert saved.trained_on == {"imported_from": f"MONAI {NETWORKS[network][1]}"}
    assert not {path.suffix for path in sources.model.iterdir()} & {".pt", ".pkl", ".py"}


def test_strides_and_kernels_per_axis_are_imported(sources):
    anisotropic = {"kernel_size": [3, 3, 3], "up_kernel_size": [3, 3, 3], "strides": [[1, 2, 2], [2, 2, 1]]}
    theirs = sources.write("unet", 3, {**CASES["unet"][1], **anisotropic})
    sources.imported("unet")
    model = load_model(sources.model)[0]
    assert model.divisor == (2, 4, 2)
    image = torch.randn(1, 2, 6, 8, 10)
    with torch.no_grad():
        assert (model.eval()(image) - theirs(image)).abs().max() < 1e-5


def test_states_are_found_in_checkpoints(sources):
    theirs = sources.write("unet", 2, CASES["unet"][1])
    state = theirs.state_dict()
    wrapped = {f"module.{key}": value.half() for key, value in state.items()}
    torch.save({"network": wrapped, "epoch": 3, "optimizer": {"state": {}, "lr": [0.1]}}, sources.weights)
    found = read_state(sources.weights)
    assert found.keys() == state.keys()
    assert all(value.dtype == torch.float32 for value in found.values())
    torch.save({"network": state, "average": state}, sources.weights)
    with pytest.raises(
        ModelError, match=r"state dict: found 'network', 'average', expected one\. Choose .* --key"
    ):
        sources.imported("unet")
    assert sources.imported("unet", key="average") < 1e-5
    with pytest.raises(ModelError, match=r"state dict called 'other': found 'network', 'average'"):
        read_state(sources.weights, "other")
    torch.save({"epoch": 3}, sources.weights)
    with pytest.raises(ModelError, match=r"found none, expected one\. Save the state dict"):
        read_state(sources.weights)
    save_file(state, sources.weights.with_suffix(".safetensors"))
    assert read_state(sources.weights.with_suffix(".safetensors")).keys() == state.keys()


def test_files_with_code_raise_without_running_it(sources, tmp_path):
    theirs = sources.write("unet", 2, CASES["unet"][1])
    torch.save({"state": theirs.state_dict(), "more": Payload(tmp_path / "harm")}, sources.weights)
    with pytest.raises(ModelError, match=r"found .*mkdir in it, expected tensors and plain values only"):
        sources.imported("unet")
    torch.save(theirs, sources.weights)
    with pytest.raises(ModelError, match="expected tensors and plain values only"):
        sources.imported("unet")
    sources.weights.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    with pytest.raises(ModelError, match="not a checkpoint in torch's zip format"):
        sources.imported("unet")
    torch.save(theirs.state_dict(), sources.weights, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"Formats before torch 1\.6 cannot be read safely"):
        sources.imported("unet")
    assert not (tmp_path / "harm").exists()
    assert not sources.model.exists()


UNET, DYNUNET, BASIC = CASES["unet"][1], CASES["dynunet"][1], CASES["basicunet"][1]


@pytest.mark.parametrize(
    ("network", "arguments", "changes", "words"),
    [
        ("unet", UNET, {"network": {"act": "elu"}}, r"network: act: .*found 'elu'"),
        ("unet", UNET, {"network": {"norm": ["instance", {"eps": 1e-3}]}}, r"network\.norm: eps: found 0\.001"),
        ("unet", UNET, {"network": {"strides": [2]}}, r"strides has 1 entries, expected 2"),
        ("unet", UNET, {"network": {"chanels": [1]}}, r"chanels: unknown key\. Did you mean 'channels'"),
        ("dynunet", DYNUNET, {"network": {"act_name": "prelu"}}, r"act_name: found 'prelu'.*no equivalent"),
        ("dynunet", DYNUNET, {"network": {"norm_name": "INSTANCE"}}, r"norm without scale and shift"),
        ("dynunet", DYNUNET, {"network": {"norm_name": "layer"}}, r"norm_name: found 'layer', expected instance"),
        ("dynunet", DYNUNET, {"network": {"norm_name": ["group", {"num_groups": 2}]}}, r"found 2 groups, expected 4"),
        ("dynunet", DYNUNET, {"network": {"strides": [2, 2, 2]}}, r"strides\.0: found 2, expected 1"),
        ("dynunet", DYNUNET, {"network": {"upsample_kernel_size": [2, 4]}}, r"size\.1: found 4, expected the stride 2"),
        ("dynunet", DYNUNET, {"network": {"kernel_size": [3, 3]}}, r"found 2, 3 and 2 entries"),
        ("dynunet", DYNUNET, {"network": {"filters": [4, 6]}}, r"filters: found 2 entries, expected at least 3"),
        ("basicunet", BASIC, {"network": {"upsample": "nontrainable"}}, r"upsample: .*'deconv'.*'nontrainable'"),
        ("unet", UNET, {"model": {"name": "unet_3d"}}, r"model: found a value, expected none, because this command"),
        ("unet", UNET, {"windw": [1, 2, 3]}, r"windw: unknown key\. Did you mean 'window'"),
        ("unet", UNET, {"window": [16, 18, 1]}, r"window: found \[16, 18\], expected multiples of \[4, 4\]"),
        ("unet", UNET, {"window": [16, 16, 16]}, r"window\.2: found 16, expected 1"),
        ("unet", UNET, {"channel_names": ["CT"]}, r"channel_names: found 1, expected 2"),
        ("unet", UNET, {"preprocessing": {}}, r"preprocessing\.channels: found 1, expected 2"),
        ("unet", UNET, {"network": {"out_channels": 2}}, r"labels\.tsv: labels, background included: found 3, expected 2"),
        ("unet", UNET, {"network": {"out_channels": 1}}, r"If a sigmoid follows, add a row of kind region to .*labels\.tsv"),
    ],
)  # fmt: skip
def test_unsupported_options_raise_before_weights_are_read(network, arguments, changes, words, sources):
    sources.write(network, 2, arguments)
    sources.weights.unlink()
    sources.change(**changes)
    with pytest.raises(ConfigError, match=words) as told:
        sources.imported(network)
    assert str(told.value).startswith(str(sources.config.parent))
    assert not sources.model.exists()


def test_unknown_networks_and_empty_files_raise(sources):
    sources.write("unet", 2, UNET)
    with pytest.raises(ConfigError, match=r"--network: found 'unett', .* Did you mean 'unet'"):
        sources.imported("unett")
    sources.config.write_text("name: x\n")
    with pytest.raises(
        ConfigError, match=r"network: found None, expected the arguments of monai\.networks\.nets\.UNet"
    ):
        sources.imported("unet")


@pytest.mark.parametrize(
    ("network", "arguments", "change"),
    [
        ("unet", UNET, {"channels": [4, 6, 10]}),
        ("unet", UNET, {"num_res_units": 0}),
        ("dynunet", DYNUNET, {"res_block": True}),
        ("dynunet", DYNUNET, {"kernel_size": [3, 3, 3]}),
        ("basicunet", BASIC, {"norm": ["instance", {"affine": True}]}),
        ("attentionunet", CASES["attentionunet"][1], {"kernel_size": 5}),
    ],
)
def test_weights_of_another_network_raise(network, arguments, change, sources):
    sources.write(network, 2, arguments)
    sources.change(network=change)
    with pytest.raises(ModelError, match=r"do not fit|no tensor|shape of|have no place"):
        sources.imported(network)
    assert not sources.model.exists()


def test_different_logits_raise(sources, monkeypatch):
    sources.write("dynunet", 2, DYNUNET)
    right = medseg.interop.monai.import_weights.load_weights

    def wrong(model: Any, weights: dict[str, torch.Tensor], where: Path) -> None:
        right(model, {**weights, "head.bias": weights["head.bias"] + 1e-3}, where)

    monkeypatch.setattr("medseg.interop.monai.import_weights.load_weights", wrong)
    with pytest.raises(ModelError, match=r"differ from those of MONAI's own network: found 0\.001 on logits"):
        sources.imported("dynunet")
    assert not sources.model.exists()


def test_command_imports_a_model_that_predicts(sources, tmp_path, make_volume, capsys):
    sources.write("unet", 3, UNET)
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    words = ["monai", str(sources.weights), "--network", "unet", "--config", str(sources.config)]
    options = parser.parse_args([*words, "--labels", str(sources.labels), "-o", str(sources.model)])
    assert command.run(options) == 0
    assert "by at most" in capsys.readouterr().out
    assert (sources.model / REFERENCE).is_file()
    volume = make_volume((20, 18, 10), channels=2)
    write(volume, tmp_path / "image.nii.gz")
    labels = medseg.load(sources.model, device="cpu")(tmp_path / "image.nii.gz")
    assert labels.grid.shape == (20, 18, 10)
    assert set(np.unique(labels.data)) <= {0, 3, 4}
    with pytest.raises(ConfigError, match=r"--output: .*model exists already"):
        command.run(options)


@pytest.mark.parametrize("regions", [1, 2])
def test_sigmoid_networks_predict_regions(regions, sources, make_volume):
    theirs = sources.write("unet", 3, UNET | {"out_channels": regions})
    rows = [
        "value\tname\tkind",
        "3\tliver\tlabel",
        "4\ttumour\tlabel",
        "3\torgan\tregion 3 4",
        "4\ttumour\tregion 4",
    ]
    sources.labels.write_text("\n".join(rows[: 3 + regions]))
    assert sources.imported("unet") < 1e-5
    predictor = medseg.load(sources.model, device="cpu")
    volume = make_volume((16, 16, 16), spacing=(2.0, 2.0, 2.0), channels=2)
    image = prepare(volume, predictor.saved.preprocessing).image.data
    with torch.no_grad():
        logits = theirs(torch.from_numpy(image)[None])[0].numpy()
    expected = np.zeros((16, 16, 16))
    for region, value in zip(logits, (3, 4), strict=False):
        expected[region > 0] = value
    found = predictor(volume).reoriented("RAS").data[0]
    assert len(np.unique(expected)) == 1 + regions
    assert np.count_nonzero(found != expected) <= 1
    sources.change(network={"out_channels": 3})
    with pytest.raises(ConfigError, match=rf"labels\.tsv: regions: found {regions}, expected 3"):
        sources.imported("unet")


def test_documented_example_is_valid(sources):
    theirs = monai.networks.nets.UNet(
        3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch"
    )
    torch.save(theirs.state_dict(), sources.weights)
    sources.config.write_text(command.EXAMPLE.partition("\n\n")[2])
    sources.labels.write_text("value\tname\n0\tbackground\n1\tspleen\n")
    assert sources.imported("unet") < 1e-5
    (channel,) = load_model(sources.model)[1].preprocessing.channels
    scaled = channel.apply(np.array([-100.0, -57.0, 53.5, 164.0, 900.0]))
    assert np.allclose(scaled, [0, 0, 0.5, 1, 1])
