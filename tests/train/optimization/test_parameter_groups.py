"""Trained weights, their learning rates and their weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.models import build_model
from medseg.models.base import Model
from medseg.train.optimization.optimizer import build_optimizer
from medseg.train.optimization.parameter_groups import FrozenParts, backbone_parameters, parameter_groups
from medseg.train.settings import OptimizerSettings

PUBLISHED = [
    ("fcn_resnet_50", 4),
    ("mask_rcnn_resnet_50_c4", 3),  # the fifth stage is the heads'
    ("mask_rcnn_vit_tiny_fpn", 12),
    ("maskformer_resnet_18", 4),
    ("mask2former_swin_tiny", 4),
]


class Toy(Model):
    """A backbone with a stem, two stages with batch norms, a norm and a position table, and a head."""

    pretrained_part = "encoder"

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=1, num_classes=2)
        self.encoder = nn.Module()
        self.encoder.conv1 = nn.Conv2d(1, 2, 1)
        self.encoder.bn1 = nn.BatchNorm2d(2)
        self.encoder.layer1 = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.encoder.layer2 = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
        self.encoder.norm = nn.LayerNorm(2)
        self.encoder.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.queries = nn.Embedding(3, 2)
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, image):
        body = self.encoder
        return self.head(body.layer2(body.layer1(body.bn1(body.conv1(image)))))


def names_by(model, groups, key):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(p)]: group[key] for group in groups for p in group["params"]}


@pytest.mark.parametrize(("name", "stages"), PUBLISHED)
def test_stem_and_stages_of_every_kind_of_backbone(name, stages):
    with torch.device("meta"):
        model = build_model(name, in_channels=1, num_classes=2)
    depths = backbone_parameters(model)
    assert sorted(set(depths.values())) == list(range(stages + 1))
    assert 0 < len(depths) < len(list(model.parameters()))
    every = set(depths.values())
    for word in ("stem", *(f"stage{depth}" for depth in every - {0})):
        FrozenParts(model, [f"backbone.{word}"]).apply(0)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(depths)


def test_the_defaults_are_one_group():
    (group,) = parameter_groups(Toy(), OptimizerSettings(weight_decay=0.1))
    assert (group["lr_factor"], group["weight_decay"]) == (1.0, 0.1)
    assert len(group["params"]) == len(list(Toy().parameters()))


def test_rates_fall_from_the_head_to_the_stem():
    model = Toy()
    groups = parameter_groups(
        model, OptimizerSettings(lr=0.2, backbone_lr_factor=0.1, layerwise_lr_decay=0.5)
    )
    factors = names_by(model, groups, "lr_factor")
    assert factors["head.weight"] == factors["queries.weight"] == 1
    assert factors["encoder.layer2.0.weight"] == factors["encoder.norm.weight"] == pytest.approx(0.05)
    assert factors["encoder.layer1.1.bias"] == pytest.approx(0.025)
    assert factors["encoder.conv1.weight"] == factors["encoder.pos_embed"] == pytest.approx(0.0125)
    assert len(factors) == len(list(model.parameters()))
    assert [group["lr"] for group in groups] == pytest.approx([0.2, 0.01, 0.005, 0.0025])


def test_norms_biases_and_embeddings_do_not_decay():
    model = Toy()
    decays = names_by(
        model,
        parameter_groups(model, OptimizerSettings(weight_decay_on="kernels", weight_decay=0.5)),
        "weight_decay",
    )
    assert {name for name, decay in decays.items() if decay == 0.5} == {
        "encoder.conv1.weight", "encoder.layer1.0.weight", "encoder.layer2.0.weight", "head.weight",
    }  # fmt: skip


def test_a_frozen_part_neither_learns_nor_counts_until_it_is_thawed():
    model = Toy()
    optimizer = build_optimizer(model, OptimizerSettings(name="adamw", lr=0.1, weight_decay=0.1))
    frozen = FrozenParts(model, ["backbone.stem", "encoder.layer1"], steps=2)
    for step in range(3):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()
        frozen.apply(step)
        assert not model.encoder.layer1[2].training or step == 2
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 1, 3, 3)).square().sum().backward()
        optimizer.step()
        same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
        held = {
            name for name in before if name.startswith(("encoder.conv1", "encoder.bn1", "encoder.layer1"))
        }
        assert (held <= same) == (step < 2)
        assert "head.weight" not in same
        assert "encoder.layer2.1.running_mean" not in same


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone.stage9"], "Did you mean 'backbone.stage1'|fits no weight of Toy"),
        (["encoder", "queries", "head"], "which is all of the model"),
    ],
)
def test_names_that_cannot_be_frozen_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        FrozenParts(Toy(), names)


def test_a_backbone_rate_needs_a_backbone():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8])
    with pytest.raises(
        ConfigError, match=r"backbone_lr_factor: found a rate for the backbone, but UNet2d has none"
    ):
        parameter_groups(model, OptimizerSettings(backbone_lr_factor=0.1))


@pytest.mark.parametrize(
    "options", [{}, {"stem_channels": 4, "bottleneck": "infer", "deep_supervision": True}]
)
def test_rates_of_a_unet_fall_from_the_last_decoder_level_to_the_first_layer(options):
    model = build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8, 8], **options)
    factors = names_by(model, parameter_groups(model, OptimizerSettings(layerwise_lr_decay=0.5)), "lr_factor")
    layers = [*(["stem"] if options else []), *(f"encoder.{n}" for n in range(3))]
    layers += [*(["bottleneck"] if options else []), "decoder.0", "decoder.1"]
    for exponent, layer in enumerate(reversed(layers), 1):
        found = {factor for name, factor in factors.items() if name.startswith(f"{layer}.")}
        assert found == {0.5**exponent}, layer
    assert all(factor == 1 for name, factor in factors.items() if "head" in name)
    assert len(factors) == len(list(model.parameters()))


def test_the_encoder_of_a_unet_is_frozen_by_its_name():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8])
    FrozenParts(model, ["encoder"]).apply(0)
    frozen = {name.split(".")[0] for name, one in model.named_parameters() if not one.requires_grad}
    assert frozen == {"encoder"}
