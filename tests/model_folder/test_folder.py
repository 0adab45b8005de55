"""Model folders are whole, checked, and free of code."""

from __future__ import annotations

import shutil

import pytest
import torch

from medseg.errors import DiskFullError, ModelError
from medseg.model_folder.folder import load_model, load_weights, save_model
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble


@pytest.fixture
def folder(make_predictor, tmp_path):
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    return tmp_path / "model"


def test_round_trip(folder, make_predictor):
    predictor = make_predictor()
    model, saved, labels = load_model(folder)
    # The catalog's options are resolved when they are loaded, so weights and labels tell.
    assert saved == predictor.saved
    assert labels == predictor.labels
    expected = predictor.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not any(path.suffix in {".py", ".pt", ".pkl", ".pth"} for path in folder.iterdir())


def test_writing_again_replaces_it_and_the_bytes_are_the_same(folder, make_predictor):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    predictor = make_predictor()
    save_model(folder, predictor.model, predictor.saved, predictor.labels)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failed_write_leaves_the_old_folder(folder, make_predictor, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.model_folder.folder.save_file", full)
    predictor = make_predictor()
    with pytest.raises(DiskFullError, match="No space left on device"):
        save_model(folder, predictor.model, predictor.saved, predictor.labels)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["config.yaml", "labels.tsv", "model.safetensors"])
def test_a_changed_file_is_refused_by_name(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=rf"{name}: found .*expected.*copy it again"):
        load_model(folder)


@pytest.mark.parametrize("name", ["labels.tsv", "model.safetensors", "manifest.json"])
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(folder)


def test_a_run_folder_points_to_its_model(folder):
    with pytest.raises(ModelError, match=r"not a model folder: found no config\.yaml\. Did you mean .*model"):
        load_model(folder.parent)
    with pytest.raises(ModelError, match=r"no such folder, expected a model folder"):
        load_model(folder.parent / "nowhere")


def test_a_truncated_weights_file_with_a_fitting_manifest(folder):
    from medseg.storage.manifest import write_manifest

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    write_manifest(folder)
    with pytest.raises(ModelError, match=r"model\.safetensors: not readable"):
        load_model(folder)


def test_a_config_from_a_newer_version_is_refused(folder):
    from medseg.storage.manifest import write_manifest

    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("format: 1", "format: 2"))
    write_manifest(folder)
    with pytest.raises(
        ModelError,
        match=r"config\.yaml: format: found 2, expected 1, because a newer medseg wrote this file \(model folder\)",
    ):
        load_model(folder)


def test_weights_of_another_model_are_named(folder, tmp_path):
    other = build_model("unet_3d", in_channels=1, num_classes=4, channels=[4, 16], num_blocks=1)
    weights = load_model(folder)[0].state_dict()
    with pytest.raises(ModelError, match=r"layers do not fit the model: .*found \(.*\), expected \("):
        load_weights(other, dict(weights), folder)


def test_a_copy_elsewhere_works(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_model(tmp_path / "elsewhere")[1].name == "toy"


def test_card_contains_provenance_and_settings(folder):
    card = (folder / "README.md").read_text()
    for part in (
        "# toy",
        "unet_3d",
        "| 0 | background |\n| 5 | liver |",
        "8x8x8 voxels",
        "not a medical device",
    ):
        assert part in card


def two_members(make_predictor):
    """Two toy networks with different weights, and their predictor's settings and labels."""
    predictor, other = make_predictor(), make_predictor()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.1
    return [predictor.model, other.model], predictor


def test_ensemble_round_trips(make_predictor, tmp_path):
    members, predictor = two_members(make_predictor)
    save_model(tmp_path / "model", LogitEnsemble(members), predictor.saved, predictor.labels)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"member_0.safetensors", "member_1.safetensors"} < names
    assert "model.safetensors" not in names
    model, saved, _ = load_model(tmp_path / "model")
    assert saved.members == 2
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), (members[0](image) + members[1](image)) / 2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"2 × unet_3d, {parameters:,} parameters" in (tmp_path / "model" / "README.md").read_text()


def test_a_missing_member_is_named(make_predictor, tmp_path):
    from medseg.storage.manifest import write_manifest

    members, predictor = two_members(make_predictor)
    save_model(tmp_path / "model", LogitEnsemble(members), predictor.saved, predictor.labels)
    (tmp_path / "model" / "member_1.safetensors").unlink()
    write_manifest(tmp_path / "model")
    with pytest.raises(
        ModelError, match=r"member_1\.safetensors: no such file, expected the weights of 2 models"
    ):
        load_model(tmp_path / "model")


def test_the_weights_that_a_training_started_from_need_not_be_there(make_predictor, tmp_path):
    predictor = make_predictor()
    toy = {"depths": [1, 1, 1, 1], "width_per_group": 4}
    classes = len(predictor.labels)
    model = build_model("fcn_resnet_50", in_channels=1, num_classes=classes, **toy)
    choice = {"name": "fcn_resnet_50", **toy, "weights": "gone/resnet50.pth"}
    saved = predictor.saved.replace(model=choice, channel_names=predictor.saved.channel_names[:1])
    save_model(tmp_path / "fcn", model, saved, predictor.labels)
    loaded, again, _ = load_model(tmp_path / "fcn")
    assert again.model["weights"] == "gone/resnet50.pth"
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())
