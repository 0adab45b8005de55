"""Old keys of configurations are answered with the new ones."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from medseg.config import Config, apply_overrides
from medseg.config_errors import _known_keys, _walk
from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.model_folder.settings import SavedModel
from medseg.models import parse_options
from medseg.renamed_keys import RENAMED


class Net(Config):
    name: Literal["net"] = "net"
    channels: tuple[int, ...] = (8, 16)
    depth: int = Field(3, ge=1)


class Link(Config):
    max_gap_slices: int = 1


class Predict(Config):
    link: Link = Link()
    min_instance_score: float = 0.5


class Morphology(Config):
    morphology_p: float = 0.4


class Cascade(Config):
    first_stage: str = "runs/first"
    perturb: Morphology = Morphology()


class Optimizer(Config):
    decay_fraction: float = 0.2


class Train(Config):
    max_time: str | None = None
    optimizer: Optimizer = Optimizer()


class Region(Config):
    output_value: int = 1


class Data(Config):
    regions: dict[str, Region] = Field(default_factory=dict)


class Detector(Config):
    name: Literal["detector"] = "detector"
    proposals_train: int = 2000
    proposals_test: int = 1000


class NewNames(Config):
    data: Data = Data()
    train: Train = Train()
    cascade: Cascade | None = None
    predict: Predict = Predict()
    model: Annotated[Detector | Net, Field(discriminator="name")] = Detector()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.budget=1h", "train.budget: renamed to train.max_time."),
        (
            "train.optimizer.decay_share=0.1",
            "train.optimizer.decay_share: renamed to train.optimizer.decay_fraction.",
        ),
        (
            "data.regions.whole.written=7",
            "data.regions.whole.written: renamed to data.regions.whole.output_value.",
        ),
        ("predict.link.gap=2", "predict.link.gap: renamed to predict.link.max_gap_slices."),
        ("cascade.run=a", "cascade.run: renamed to cascade.first_stage."),
        (
            "model={name: detector, proposals: [2000, 1000]}",
            "model.proposals: renamed to model.proposals_train and model.proposals_test.",
        ),
        ("previous.run=a", "previous: renamed to cascade. previous.run: renamed to cascade.first_stage."),
        (
            "previous.augment.reshape_p=0.1",
            "previous: renamed to cascade. previous.augment: renamed to cascade.perturb. "
            "previous.augment.reshape_p: renamed to cascade.perturb.morphology_p.",
        ),
    ],
)
def test_an_old_key_is_answered_with_the_new_one(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NewNames.parse(apply_overrides({}, [override]))
    assert str(caught.value) == f"config: {expected}"


def test_an_old_key_of_a_group_alone_is_answered_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"gap: renamed to max_gap_slices\."):
        Link.parse({"gap": 2})
    with pytest.raises(ConfigError, match=r"link\.gap: renamed to link\.max_gap_slices\."):
        Predict.parse({"link": {"gap": 2}})


def test_a_new_name_is_offered_only_where_it_is_a_key() -> None:
    with pytest.raises(ConfigError, match=r"model\.queries: unknown key\. Known keys: name, channels, depth"):
        NewNames.parse({"model": {"name": "net", "queries": 3}})


MASK_RCNN = {
    "proposals": "proposals_train and proposals_test",
    "proposals_before_nms": "proposals_before_nms_train and proposals_before_nms_test",
    "box_width": "box_head_width",
    "mask_widths": "mask_head_widths",
    "anchors_sampled": "sampled_anchors_per_image",
    "boxes_sampled": "sampled_proposals_per_image",
}
MASKFORMER = {
    "heads": "swin_heads",
    "queries": "num_queries",
    "auxiliary": "auxiliary_losses",
    "targets": "target_masks",
    "fuse": "fused_classes",
}
RENAMED_IN_MODELS: dict[str, dict[str, str]] = {
    "attention_unet_3d": {
        "gate.shallowest": "gate.include_shallowest",
        "gate.coefficients": "gate.num_coefficients",
    },
    "fcn_resnet_50": {"auxiliary": "auxiliary_head"},
    "mask_rcnn_resnet_50_fpn": MASK_RCNN,
    "mask_rcnn_resnet_50_c4": {**MASK_RCNN, "form": "feature_map"},
    "mask_rcnn_vit_base_fpn": {
        **MASK_RCNN,
        "heads": "attention_heads",
        "window": "attention_window",
        "pyramid": "feature_pyramid",
    },
    "maskformer_resnet_50": MASKFORMER,
    "mask2former_swin_tiny": {**MASKFORMER, "points": "num_points"},
}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [(name, *keys) for name, table in RENAMED_IN_MODELS.items() for keys in table.items()],
)
def test_an_old_option_of_a_model_is_answered_with_the_new_one(name: str, old: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(name, apply_overrides({}, [f"{old}=1"]))
    assert str(caught.value) == f"model: {old}: renamed to {new}."


def test_an_old_key_of_saved_settings_is_answered_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"previous_labels: renamed to num_first_stage_labels\."):
        SavedModel.parse({"previous_labels": 3})


def test_every_renamed_option_of_a_model_is_tested() -> None:
    tested = {old for table in RENAMED_IN_MODELS.values() for old in table}
    assert tested == {old.removeprefix("model.") for old, _ in RENAMED if old.startswith("model.")}


def test_every_new_key_of_an_experiment_exists() -> None:
    """A renamed key of the table leads to a key of the real configuration; models have their own options."""
    for old, names in RENAMED:
        *groups, last = old.split(".")
        if groups[:1] == ["model"]:
            continue
        known = [_known_keys(_walk(config, tuple(groups))[1]) for config in (ExperimentConfig, SavedModel)]
        assert any(set(names) <= set(keys) for keys in known), old
        assert not any(last in keys for keys in known), old
