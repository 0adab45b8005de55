"""Where trained weights are read from, and the answers to paths that hold none."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import ConfigError, MedsegError, ModelError
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.weight_source import read_model_folder, read_source
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from tests.helpers.networks import randomise
from tests.helpers.nnunet_models import dataset_of, import_and_load, plans_2d, write_trained

LABELS = Labels.from_names({"background": 0, "liver": 1, "spleen": 2})
OPTIONS = {"channels": [4, 8], "num_blocks": 1}


def unet(seed=0):
    torch.manual_seed(seed)
    return randomise(build_model("unet_3d", in_channels=1, num_classes=3, **OPTIONS), kernels=seed > 0)


@pytest.fixture
def folder(tmp_path):
    return saved_folder(tmp_path / "model", unet(1))


def saved_folder(path: Path, model) -> Path:
    saved = SavedModel.parse(
        {
            "medseg": "0.1",
            "name": "first",
            "model": {"name": "unet_3d", **OPTIONS},
            "channel_names": ["CT"],
            "preprocessing": {"channels": [{"method": "ct", "mean": 40, "std": 20, "low": 0, "high": 80}]},
            "window": [8, 8, 8],
            "trained_on": {"dataset": "toys"},
        }
    )
    save_model(path, model, saved, LABELS)
    return path


def tensors(path, model=None, **adapt):
    return read_source(path, model or unet(), AdaptSettings.parse(adapt)).weights.tensors


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_model_folder_and_its_file_are_the_same_source(folder):
    expected = unet(1).state_dict()
    for path in (folder, folder / "model.safetensors"):
        source = read_source(path, unet(), AdaptSettings())
        assert same(source.weights.tensors, expected)
        assert (source.weights.ends.inputs, source.weights.ends.outputs) == (("CT",), LABELS.names)
        assert source.weights.heads == {"head.weight", "head.bias"}
        assert source.saved is not None
        assert source.saved.name == "first"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert source.sha256() == manifest["files"]["model.safetensors"]["sha256"]


def test_one_network_of_an_ensemble_has_to_be_chosen(tmp_path):
    folder = saved_folder(tmp_path / "several", LogitEnsemble([unet(1), unet(2)]))
    with pytest.raises(ConfigError, match=r"found an ensemble of 2 networks.*model.adapt.member \(0 to 1\)"):
        read_model_folder(folder)
    assert same(tensors(folder, member=1), unet(2).state_dict())
    assert same(tensors(folder / "member_0.safetensors"), unet(1).state_dict())
    with pytest.raises(ConfigError, match=r"model.adapt.member: found 2, expected 0 to 1"):
        tensors(folder, member=2)
    save_file(unet(1).state_dict(), folder.parent / "other.safetensors")
    shutil.copy(folder.parent / "other.safetensors", folder / "other.safetensors")
    with pytest.raises(ModelError):
        tensors(folder / "other.safetensors")


def test_a_file_of_tensors_has_no_names_but_those_that_are_given(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(unet(1).state_dict(), path)
    source = read_source(path, unet(), AdaptSettings.parse({"source_labels": LABELS.names}))
    assert same(source.weights.tensors, unet(1).state_dict())
    assert (source.saved, source.weights.ends.inputs, source.weights.ends.outputs) == (
        None,
        None,
        LABELS.names,
    )
    torch.save({"net": unet(1).state_dict(), "ema": unet(2).state_dict()}, tmp_path / "two.pt")
    assert same(tensors(tmp_path / "two.pt", key="ema"), unet(2).state_dict())
    with pytest.raises(ModelError, match="Choose one with"):
        tensors(tmp_path / "two.pt")


@pytest.mark.slow
def test_state_dicts_of_monai_are_recognised(tmp_path):
    from monai.networks.nets import BasicUNet, DynUNet, SegResNet

    torch.manual_seed(4)
    image = torch.randn(1, 1, 32, 32, 32)
    theirs = SegResNet(3, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)).eval()
    dyn = DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], deep_supervision=False).eval()
    basic = BasicUNet(3, 1, 3, features=(8, 8, 16, 16, 16, 8)).eval()
    stages = [{"channels": width, "num_blocks": 2} for width in (16, 16, 8, 8)]
    pairs = [
        (theirs, "segresnet_3d", {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}),
        (dyn, "unet_3d", {"channels": [4, 8, 8], "num_blocks": 2, "bias": True}),
        (basic, "unet_3d", {"channels": [8, 8, 16, 16, 16], "downsample": "maxpool", "negative_slope": 0.1, "bias": True,
                            "upsample_channels": [8, 8, 8, 8], "decoder_stages": stages}),
    ]  # fmt: skip
    for number, (network, name, options) in enumerate(pairs):
        path = tmp_path / f"{number}.pt"
        torch.save({"state_dict": network.state_dict()}, path)
        model = build_model(name, in_channels=1, num_classes=3, **options)
        model.load_state_dict(tensors(path, model))
        with torch.no_grad():
            assert torch.allclose(model.eval()(image), network(image), atol=1e-4), name
    with pytest.raises(
        ModelError, match=r"no tensor fits UNet3d: found \d+ tensors such as 'convInit.conv.weight'"
    ):
        tensors(tmp_path / "0.pt")


def test_a_checkpoint_of_nnunet_alone_gives_the_network_of_its_import(tmp_path):
    pytest.importorskip("nnunetv2")
    trained = write_trained(tmp_path, "2d", plans_2d((1, 2, 0)), dataset_of())
    imported = import_and_load(trained, tmp_path / "imported")
    path = tmp_path / "alone.pth"
    shutil.copy(trained / "fold_0" / "checkpoint_final.pth", path)
    folder, alone = (
        read_model_folder(tmp_path / "imported"),
        read_source(path, imported.model, AdaptSettings()),
    )
    assert same(alone.weights.tensors, folder.weights.tensors)
    assert alone.weights.ends == folder.weights.ends
    assert alone.labels == folder.labels
    assert alone.saved is not None
    assert folder.saved is not None
    assert alone.saved.replace(trained_on={}, training_data=None) == folder.saved.replace(
        trained_on={}, training_data=None
    )
    with pytest.raises(ModelError, match=r"found a trained folder of nnU-Net.*fold_\*/checkpoint_final.pth"):
        read_model_folder(trained)
    content = torch.load(path, weights_only=False)
    del content["init_args"]["plans"]
    torch.save(content, path)
    with pytest.raises(ModelError, match="found no plans and dataset_json"):
        read_source(path, imported.model, AdaptSettings())


class Payload:
    """A pickle that would call a function."""

    def __reduce__(self):
        return (print, ("the file was run",))


def test_code_in_a_file_is_refused_without_running_it(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "code.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("code.pth", "plain.pt"):
        with pytest.raises(ModelError) as error:
            tensors(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    assert capsys.readouterr().out == ""


def test_answers_to_paths_without_weights(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").write_text("-")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    (tmp_path / "short.safetensors").write_bytes(bytes(content[:40]))
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04")
    answers = {
        "modle": "no such file or folder, expected a model folder, a run or a file of weights. Did you mean 'model'?",
        "empty": "not a model folder: found no config.yaml",
        "notes.txt": "found a file ending in .txt, expected .safetensors, .pth",
        "damaged": "found SHA-256",
        "short.safetensors": "not readable",
        "short.pth": "not a checkpoint in torch's zip format",
    }
    for name, expected in answers.items():
        with pytest.raises(MedsegError) as error:
            tensors(tmp_path / name)
        assert expected in str(error.value), name
        assert str(tmp_path / name) in str(error.value)


def test_a_source_of_another_number_of_networks_is_refused(tmp_path):
    save_file(unet(1).state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"model.adapt.member: found 2, expected null"):
        tensors(tmp_path / "bare.safetensors", member=2)
