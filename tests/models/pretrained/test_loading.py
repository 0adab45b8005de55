from __future__ import annotations

import io
import subprocess
import sys
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import ModelError
from medseg.models.pretrained import sources as weight_sources
from medseg.models.pretrained.loading import inflate, resize_positions
from medseg.models.pretrained.sources import TIMM_NAMES, read_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to connect fails the test, not only the call."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def resnet_file(tmp_path, model, prefix="backbone.", suffix=".pth"):
    """The backbone of one of our models as a classifier's checkpoint."""
    state = {k.removeprefix(prefix): v.clone() for k, v in model.state_dict().items() if k.startswith(prefix)}
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    path = tmp_path / f"resnet{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    return path, state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_is_loaded_from_a_file(tmp_path, toy, suffix):
    path, state = resnet_file(tmp_path, toy("fcn_resnet_50", in_channels=3, seed=5), suffix=suffix)
    model = toy("fcn_resnet_50", in_channels=3, weights=str(path))
    assert torch.equal(model.backbone.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])
    report = model.loaded_weights
    assert len(report.loaded) == len(state) - 2
    assert report.adapted == ()
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    assert all(name.startswith(("classifier.", "aux_classifier.")) for name in report.fresh)
    assert f"{path}: {len(state) - 2} tensors loaded; " in str(report)
    assert "2 not used (" in str(report)


def test_feature_pyramid_backbone_is_loaded_from_the_same_file(tmp_path, toy):
    path, state = resnet_file(tmp_path, toy("fcn_resnet_50", in_channels=3, seed=5))
    model = toy("mask_rcnn_resnet_50_fpn", in_channels=3, weights=str(path))
    assert torch.equal(model.backbone.body.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])


def test_fifth_stage_of_c4_is_loaded_into_the_heads(tmp_path, toy):
    wide = {"block": "bottleneck", "width_per_group": 4}
    path, state = resnet_file(tmp_path, toy("fcn_resnet_50", in_channels=3, seed=5))
    model = toy("mask_rcnn_resnet_50_c4", in_channels=3, weights=str(path), **wide)
    assert torch.equal(model.roi_heads.box_head.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    assert torch.equal(model.backbone.body.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_give_the_same_features_for_grey_images(tmp_path, toy, channels):
    source = toy("fcn_resnet_50", in_channels=3, seed=5)
    path, _ = resnet_file(tmp_path, source)
    model = toy("fcn_resnet_50", in_channels=channels, weights=str(path))
    grey = torch.randn(1, 1, 32, 32)
    wanted = source.backbone.conv1(grey.expand(-1, 3, -1, -1))
    found = model.backbone.conv1(grey.expand(-1, channels, -1, -1))
    assert (found - wanted).abs().max() < 1e-5
    assert model.loaded_weights.adapted == ("backbone.conv1.weight",)
    assert inflate(torch.randn(4, 3, 2, 2), channels).shape == (4, channels, 2, 2)


def test_heads_for_other_classes_are_not_loaded(tmp_path, toy):
    source = toy("mask_rcnn_resnet_50_fpn", num_classes=5, seed=5)
    path = tmp_path / "whole.safetensors"
    save_file(source.state_dict(), path)
    model = toy("mask_rcnn_resnet_50_fpn", num_classes=3, weights=str(path))
    fresh = toy("mask_rcnn_resnet_50_fpn", num_classes=3)
    heads = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    assert set(model.loaded_weights.fresh) == {name for name in fresh.state_dict() if name.startswith(heads)}
    for name, tensor in model.state_dict().items():
        expected = fresh if name.startswith(heads) else source
        assert torch.equal(tensor, expected.state_dict()[name]), name
    again = toy("mask_rcnn_resnet_50_fpn", num_classes=5, weights=str(path))
    assert again.loaded_weights.fresh == ()


def test_vit_is_loaded_from_timm(tmp_path, toy):
    """Its class token and last norm are left; its table of 3×3 patches is resized to 2×2."""
    timm = pytest.importorskip("timm.models.vision_transformer")
    theirs = timm.VisionTransformer(img_size=48, embed_dim=24, depth=4, num_heads=2, num_classes=3)
    torch.nn.init.normal_(theirs.pos_embed)
    path = tmp_path / "vit.safetensors"
    save_file(theirs.state_dict(), path)
    for name in ("mask_rcnn_vit_tiny_fpn", "mask_rcnn_vit_adapter_small"):
        model = toy(name, in_channels=1, weights=str(path))
        vit = model.backbone.body.vit
        assert torch.equal(vit.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)
        assert torch.equal(vit.pos_embed, resize_positions(theirs.pos_embed, 4))
        kernel = theirs.patch_embed.proj.weight.sum(dim=1, keepdim=True)
        assert (vit.patch_embed.proj.weight - kernel).abs().max() < 1e-5
        report = model.loaded_weights
        assert set(report.unused) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
        assert len(report.adapted) == 2
    assert torch.equal(resize_positions(theirs.pos_embed, 9), theirs.pos_embed[:, 1:])


@pytest.mark.parametrize("name", ["maskformer_resnet_18", "mask2former_swin_tiny"])
def test_transformers_weights_are_loaded(tmp_path, toy, name):
    """Of the whole network, and of an image classifier with the same backbone."""
    from transformers import ResNetForImageClassification, SwinForImageClassification

    source = toy(name, in_channels=3, seed=5)
    whole = tmp_path / "whole.safetensors"
    save_file(source.network.state_dict(), whole)
    model = toy(name, in_channels=3, num_classes=4, weights=str(whole))
    heads = {
        "network.class_predictor.weight",
        "network.class_predictor.bias",
        "network.criterion.empty_weight",
    }
    assert set(model.loaded_weights.fresh) == heads

    kind = SwinForImageClassification if "swin" in name else ResNetForImageClassification
    classifier = kind(source.network.config.backbone_config)
    alone = tmp_path / "classifier.safetensors"
    save_file(classifier.state_dict(), alone)
    encoder = toy(name, in_channels=1, weights=str(alone)).network.model.pixel_level_module.encoder
    if "swin" in name:
        ours, theirs = encoder.swin.encoder, classifier.swin.encoder
    else:
        ours, theirs = encoder.encoder, classifier.resnet.encoder
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key


def test_older_names_of_swin_are_loaded(tmp_path, toy):
    source = toy("mask2former_swin_tiny", in_channels=3, seed=5)
    state = {}
    for key, tensor in source.network.state_dict().items():
        old = key.replace("encoder.swin.", "encoder.")
        if "pixel_level_module.encoder." in old:
            for new, before in (
                ("attention.q_proj", "attention.self.query"),
                ("attention.k_proj", "attention.self.key"),
                ("attention.v_proj", "attention.self.value"),
                ("attention.o_proj", "attention.output.dense"),
                ("attention.relative_position_bias.", "attention.self."),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                old = old.replace(new, before)
        state[old] = tensor
    path = tmp_path / "old.safetensors"
    save_file(state, path)
    model = toy("mask2former_swin_tiny", in_channels=3, weights=str(path))
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_older_names_of_maskformer_are_loaded(tmp_path, toy):
    source = toy("maskformer_resnet_18", in_channels=3, seed=5)
    older = {
        key.replace("mlp.fc", "fc").replace("o_proj", "out_proj"): tensor
        for key, tensor in source.network.state_dict().items()
    }
    assert older.keys() != source.network.state_dict().keys()
    path = tmp_path / "old.safetensors"
    save_file(older, path)
    model = toy("maskformer_resnet_18", in_channels=3, weights=str(path))
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_weights_of_another_architecture_raise_and_change_nothing(tmp_path, toy):
    path, _ = resnet_file(tmp_path, toy("fcn_resnet_50", in_channels=3))
    with pytest.raises(ModelError, match=r"\d+ tensors are missing, such as 'backbone.layer1.1"):
        toy("fcn_resnet_50", in_channels=3, depths=[2, 1, 1, 1], weights=str(path))
    with pytest.raises(ModelError, match=r"shape of 'backbone.layer1.0.\S+': found .* expected"):
        toy("fcn_resnet_50", in_channels=3, width_per_group=8, weights=str(path))
    with pytest.raises(ModelError, match=r"no tensor fits MaskTransformer, such as 'conv1\.weight'"):
        toy("maskformer_resnet_18", in_channels=3, weights=str(path))


class Evil:
    """Writes a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickle_is_not_executed(tmp_path, toy):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"conv1.weight": Evil(str(trace))}, path)
    with pytest.raises(ModelError, match="expected tensors and plain values only"):
        toy("fcn_resnet_50", weights=str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.safetensors", b"\x10\x00", "not a file of weights"),
        ("text.pth", b"hello", "not a checkpoint in torch's zip format"),
        ("empty.pth", None, "no tensors by name"),
    ],
)
def test_damaged_files_raise(tmp_path, name, content, words):
    path = tmp_path / name
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        read_weights(str(path), download=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no_such_file.pth", "no such file or name: 'no_such_file.pth'"),
        ("deit_tiny_patch16_244", "Did you mean 'deit_tiny_patch16_224'?"),
        ("ResNet50_Weights.IMAGENET1K_V9", "torchvision has no weights called"),
        ("ResNet50_Weights.IMAGENET1K_V2", "not on this machine: .*resnet50-11ad3fa6.pth"),
        ("hub:one", "'hub:one' is not the name of a hub repository"),
        ("hub:org/name", "hub:org/name: not on this machine"),
        (f"hub:org/name@{COMMIT}", "not on this machine: .* Set download: true"),
        ("deit_small_patch16_224", "hub:timm/deit_small_patch16_224.fb_in1k: not on this machine"),
    ],
)
def test_missing_weights_raise(source, words, tmp_path, monkeypatch, toy):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=words) as caught:
        toy("fcn_resnet_50", weights=source)
    assert str(caught.value).count("\n") == 0


def hub_cache(folder, repository, state):
    """A local cache of the hub with one file, as its client lays it out."""
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    # A configuration that asks for code from elsewhere; it is not even read.
    (root / "snapshots" / COMMIT / "config.json").write_text('{"attn_implementation": "kernels/evil"}')
    save_file(state, root / "snapshots" / COMMIT / "model.safetensors")


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_local_cache_of_the_hub_is_used(tmp_path, monkeypatch, revision):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, "org/name", {"a": torch.ones(2)})
    assert read_weights(f"hub:org/name{revision}", download=False)["a"].tolist() == [1, 1]
    name = "deit_tiny_patch16_224"
    hub_cache(tmp_path, TIMM_NAMES[name], {"b": torch.zeros(1)})
    assert list(read_weights(f"{name}{revision}", download=True)) == ["b"]


def test_download_needs_a_commit_and_a_connection(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="revision to download: found main, expected a commit"):
        read_weights("hub:org/name@main", download=True)
    asked = []

    def unreachable(request, timeout):
        asked.append(timeout)
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ModelError, match=r"cannot be fetched \(no route to host\)"):
        read_weights(f"hub:org/name@{COMMIT}", download=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="switched off by HF_HUB_OFFLINE"):
        read_weights(f"hub:org/name@{COMMIT}", download=True)
    assert asked == [weight_sources.TIMEOUT]  # once, and not without end


def test_torchvision_names_are_loaded(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.ones(1)}, buffer)
    content = buffer.getvalue()
    digits = sha256(content).hexdigest()[:8]
    url = f"https://example.org/resnet50-{digits}.pth"
    monkeypatch.setattr("torchvision.models.get_weight", lambda name: SimpleNamespace(url=url))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    name, path = "ResNet50_Weights.IMAGENET1K_V2", tmp_path / "checkpoints" / f"resnet50-{digits}.pth"
    for answer, words in (
        (OSError("timed out"), r"cannot be fetched \(timed out\)"),
        (b"other", "sha256: found"),
    ):

        def urlopen(asked, timeout, answer=answer):
            if isinstance(answer, OSError):
                raise answer
            return io.BytesIO(answer)

        monkeypatch.setattr("urllib.request.urlopen", urlopen)
        with pytest.raises(ModelError, match=words):
            read_weights(name, download=True)
        assert not path.exists()
    monkeypatch.setattr("urllib.request.urlopen", lambda asked, timeout: io.BytesIO(content))
    assert list(read_weights(name, download=True)) == ["conv1.weight"]
    monkeypatch.delattr("urllib.request.urlopen")
    assert list(read_weights(name, download=False)) == ["conv1.weight"]
    path.write_bytes(b"cut")
    with pytest.raises(ModelError, match="sha256: found"):
        read_weights(name, download=False)


HEAVY = ("torch", "monai", "torchvision", "transformers", "timm", "huggingface_hub")
SCRIPT = f"""
import sys, warnings
warnings.simplefilter("ignore")
def loaded():
    return [name for name in {HEAVY!r} if name in sys.modules]
import medseg
from medseg.models import parse_options
[parse_options(name) for name in medseg.list_models()]
print(loaded())
from medseg.cli.main import main
main(["models", "fcn*"])
print(loaded())
medseg.build_model("unet_2d", in_channels=1, num_classes=2)
medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
print(loaded())
medseg.build_model("fcn_resnet_50", in_channels=1, num_classes=2, depths=[1, 1, 1, 1])
print(loaded())
"""


@pytest.mark.slow
def test_heavy_libraries_are_imported_where_they_are_used():
    """Names, options and the listing import none of them; a U-Net torch alone, not MONAI; an FCN torchvision besides."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert told == ["[]", "[]", "['torch']", "['torch', 'torchvision']"]
