"""Published models as first weights: heads by class names, channels by colour, and the normalisation that belongs to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from medseg.data.datasets.image_folders import read_image_folder
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.experiment.resolve_data import labels_of, resolve_preprocessing, with_absolute_paths
from medseg.fine_tuning.network_ends import Ends
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.start_model import start_from
from medseg.model_folder.folder import load_model
from medseg.models import build_model
from medseg.models.pretrained.zoos.class_names import COCO
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_options import PlanOptions
from tests.helpers.networks import randomise, toy_options
from tests.helpers.zoo_files import to_detectron2, write_detectron2

NAME = "mask_rcnn_resnet_50_fpn"
OPTIONS = {
    "depths": [1, 1, 1, 1],
    "width_per_group": 4,
    "norm": "frozen",
    "strided_kernel": "1x1",
    "box_convention": "detectron2",
    "mask_head_widths": [8],
    "box_head_width": 16,
    "feature_channels": 16,
    "anchor_sizes": [[32], [64], [128], [256], [512]],
}
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return randomise(build_model(NAME, in_channels=3, num_classes=81, **OPTIONS), kernels=True)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "model_final_a54504.pkl"
    return write_detectron2(path, to_detectron2(source.state_dict()))


def started(file, inputs, outputs, name=NAME, options=None, **adapt):
    chosen = OPTIONS if options is None else options

    def build(channels, classes):
        return build_model(name, in_channels=channels, num_classes=classes, **chosen)

    torch.manual_seed(2)
    model = build(len(inputs), len(outputs))
    return start_from(model, build, Ends(tuple(inputs), tuple(outputs)), file, AdaptSettings.parse(adapt))


def test_heads_are_kept_by_class_name(source, file):
    outputs = ("background", "dog", "polyp", "person")
    found = started(file, COLOURS, outputs)
    ours, theirs = found.model.roi_heads, source.roi_heads
    places = [0, 1 + COCO.index("dog"), None, 1]
    for here, there in enumerate(places):
        if there is None:
            continue
        assert torch.equal(
            ours.box_predictor.cls_score.weight[here], theirs.box_predictor.cls_score.weight[there]
        )
        if here:
            own, old = slice(4 * here, 4 * here + 4), slice(4 * there, 4 * there + 4)
            assert torch.equal(
                ours.box_predictor.bbox_pred.weight[own], theirs.box_predictor.bbox_pred.weight[old]
            )
            masks = ours.mask_predictor.mask_fcn_logits.weight, theirs.mask_predictor.mask_fcn_logits.weight
            assert torch.equal(masks[0][here], masks[1][there])
    record = found.record
    assert record is not None
    assert found.source is None
    rows = [(row.here, row.source, row.result) for row in record.rows if row.part == "output"]
    assert rows[:4] == [
        ("background", "background", "taken"),
        ("dog", "dog", "taken"),
        ("polyp", "", "new"),
        ("person", "person", "taken"),
    ]
    assert [result for _, _, result in rows[4:]] == ["left"] * 78
    assert record.name == "mask_rcnn_resnet_50_fpn of Detectron2"
    assert len(record.sha256) == 64


def test_all_classes_of_coco_give_the_whole_network(source, file):
    found = started(file, COLOURS, ("background", *COCO)).model
    for key, tensor in source.state_dict().items():
        first = 4 if "box_predictor.bbox_pred" in key else 1 if "mask_fcn_logits" in key else 0
        assert torch.equal(found.state_dict()[key][first:], tensor[first:]), key


def test_channels_are_matched_by_colour_and_scaled_otherwise(source, file):
    """Detectron2's kernels expect pixels of their own scale; those of other channels expect standard deviation 1."""
    kernel = source.backbone.body.conv1.weight
    turned = started(file, ("blue", "infrared", "red"), ("background", "person")).model
    found = turned.backbone.body.conv1.weight
    assert torch.equal(found[:, 0], kernel[:, 2])
    assert torch.equal(found[:, 2], kernel[:, 0])
    factor = (58.395 + 57.12 + 57.375) / 3
    assert torch.allclose(found[:, 1], kernel[:, 1] * factor, rtol=1e-5)
    grey = started(file, ("CT",), ("background", "person")).model.backbone.body.conv1.weight
    assert torch.allclose(grey, kernel.sum(dim=1, keepdim=True) * factor, rtol=1e-4, atol=1e-5)


def test_classes_without_a_background_leave_it_new(tmp_path):
    name = "mask2former_resnet_18"
    torch.manual_seed(3)
    source = randomise(build_model(name, in_channels=3, num_classes=3, **toy_options(name)))
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file(source.network.state_dict(), folder / "model.safetensors")
    labels = {"0": "wall", "1": "sky", "2": "tree"}
    (folder / "config.json").write_text(json.dumps({"id2label": labels, "num_attention_heads": 2}))
    found = started(folder, COLOURS, ("background", "sky", "wall"), name, toy_options(name))
    own, old = found.model.network.class_predictor.weight, source.network.class_predictor.weight
    assert torch.equal(own[1:], old[[1, 0, 3]])  # the last one is "no object"
    assert not torch.equal(own[0], old[0])
    rows = [(row.here, row.source, row.result) for row in found.record.rows if row.part == "output"]
    assert rows == [
        ("background", "", "new"),
        ("sky", "sky", "taken"),
        ("wall", "wall", "taken"),
        ("", "tree", "left"),
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Four colour images with a map of two labels."""
    folder = tmp_path_factory.mktemp("colour")
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 72, 3), np.uint8)).save(folder / "images" / f"{number}.png")
        labels = np.zeros((40, 72), np.uint8)
        labels[8:20, 10:30], labels[24:36, 40:60] = 1, 2
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    (folder / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tperson\n2\tpolyp\n")
    return folder


def experiment(images, file, **preprocess):
    return Experiment.parse(
        {
            "data": {"path": str(images), "folds": 2},
            "model": {"name": NAME, "weights": str(file), **OPTIONS},
            "preprocess": {"crop_to_nonzero": False, **preprocess},
            "patch": {"size": [64, 64]},
            "train": {"steps": 1},
        }
    )


def resolved(images, file, **preprocess):
    chosen = experiment(images, file, **preprocess)
    dataset = read_image_folder(images)
    return resolve_preprocessing(chosen, dataset, labels_of(chosen, dataset), ["0", "1"])


def test_the_normalisation_of_the_weights_goes_into_the_model(images, file):
    expected = [("ct", 123.675, 1.0), ("ct", 116.28, 1.0), ("ct", 103.53, 1.0)]
    statistics = {
        name: {"mean": mean, "std": std} for name, (_, mean, std) in zip(COLOURS, expected, strict=True)
    }
    for same in ({}, {"normalize": ["auto", "ct", "auto"]}, {"normalize": "ct", "intensities": statistics}):
        found = resolved(images, file, **same).channels
        assert [(one.method, one.mean, one.std) for one in found] == expected
        assert all((one.low, one.high) == (None, None) for one in found)


def test_another_normalisation_than_that_of_the_weights_is_refused(images, file):
    given = {name: {"mean": 100, "std": 50} for name in COLOURS}
    for changes, found in (
        ({"normalize": "zscore"}, "found zscore for red"),
        ({"normalize": ["auto", "rgb", "auto"]}, "found rgb for green"),
        ({"normalize": "ct", "intensities": given}, "found ct with mean 100 and std 50 for red"),
    ):
        with pytest.raises(ConfigError, match=rf"preprocess\.normalize: {found}, expected ct with mean"):
            resolved(images, file, **changes)


@pytest.mark.slow
def test_a_training_starts_from_the_file(images, file, tmp_path):
    trainer = experiment(images, file).trainer(tmp_path / "run")
    assert len(list(trainer)) == 1
    record = json.loads((tmp_path / "run" / "started_from.json").read_text())
    assert record["name"] == "mask_rcnn_resnet_50_fpn of Detectron2"
    saved = load_model(tmp_path / "run")[1]
    assert saved.preprocessing.channels[0].mean == 123.675
    assert (saved.model["strided_kernel"], saved.model["weights"]) == ("1x1", file.name)


@pytest.mark.slow
def test_a_plan_takes_options_and_statistics(images, file, tmp_path):
    made = plan(images, PlanOptions(start=file, device="cpu"), cache=tmp_path / "fingerprint.json")
    planned = made.experiment
    assert planned == Experiment.parse(yaml.safe_load(made.text))
    options = planned.model.options().to_plain()
    assert planned.model.name == NAME
    for key, value in OPTIONS.items():
        assert options[key] == value, key
    assert planned.preprocess.normalize == ("ct", "ct", "ct")
    assert planned.preprocess.intensities["blue"].to_plain()["mean"] == 103.53
    assert planned.slices.radiological_view
    assert planned.patch.size == (96, 64)  # x is the longer side
    for line in (
        "Starts from the weights of mask_rcnn_resnet_50_fpn of Detectron2 (model_final_a54504.pkl).",
        "Labels that it knows: person.",
        "New labels: polyp.",
    ):
        assert line in made.text
    with pytest.raises(ConfigError, match=r"--keep-old-labels: .* found a published model"):
        plan(images, PlanOptions(start=file, keep_old_labels=True), cache=tmp_path / "fingerprint.json")


def test_a_repository_in_the_cache_of_the_hub_is_used_by_its_name(images, tmp_path, monkeypatch):
    """The files of the cache are links to files with other names; its configuration names the classes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "maskformer_resnet_18"
    source = build_model(name, in_channels=3, num_classes=2, **toy_options(name))
    root = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = root / "snapshots" / ("0" * 40), root / "blobs"
    for folder in (snapshot, blobs, root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    save_file(source.network.state_dict(), blobs / "aaaa")
    (blobs / "bbbb").write_text(
        json.dumps({"id2label": {"0": "person", "1": "tree"}, "num_attention_heads": 2})
    )
    (snapshot / "model.safetensors").symlink_to(blobs / "aaaa")
    (snapshot / "config.json").symlink_to(blobs / "bbbb")
    made = plan(images, PlanOptions(start="hub:org/name", device="cpu"), cache=tmp_path / "fingerprint.json")
    assert made.experiment.model.weights == "hub:org/name"
    assert "Labels that it knows: person." in made.text
    path = made.experiment.model.trained_source
    found = started(path, COLOURS, ("background", "person"), name, toy_options(name)).model
    assert torch.equal(found.network.class_predictor.weight[1], source.network.class_predictor.weight[0])
    kept = with_absolute_paths(
        made.experiment.replace(model={"name": name, "weights": str(path), **toy_options(name)})
    )
    assert kept.model.weights == str(path)
