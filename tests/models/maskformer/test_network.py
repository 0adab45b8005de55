from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from medseg.errors import ConfigError
from medseg.models import parse_options
from medseg.models.detections import instance_targets
from medseg.models.maskformer.network import _backbone
from medseg.models.maskformer.outputs import panoptic, query_instances, semantic_scores
from tests.helpers.networks import toy_options

NAMES = ["maskformer_resnet_18", "mask2former_resnet_50", "mask2former_swin_tiny"]


def theirs(name, ours):
    """transformers' own network of the same configuration, with our weights and what we leave out of them."""
    network = type(ours.network)(ours.network.config).eval()
    missing, unexpected = network.load_state_dict(ours.network.state_dict(), strict=False)
    assert unexpected == []
    prefix = "model.pixel_level_module.encoder.swin.layernorm"
    assert missing == ([f"{prefix}.weight", f"{prefix}.bias"] if "swin" in name else [])
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name, toy):
    ours = toy(name).eval()
    network = theirs(name, ours)
    image = torch.randn(2, 2, 64, 96)
    wanted = network(pixel_values=image)
    classes, masks = ours._run(image, auxiliary=False)[-1]
    assert (classes - wanted.class_queries_logits).abs().max() < 1e-5
    assert (masks - wanted.masks_queries_logits).abs().max() < 1e-5
    with_auxiliary = ours._run(image, auxiliary=True)
    assert len(with_auxiliary) == 2
    assert (with_auxiliary[-1][1] - wanted.masks_queries_logits).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_transformers(name, toy):
    ours = toy(name, auxiliary_losses="2former" in name).eval()
    network = theirs(name, ours)
    image, label = torch.randn(2, 2, 64, 96), torch.zeros(2, 1, 64, 96, dtype=torch.long)
    label[0, 0, 10:30, 20:70] = 2
    label[1, 0, 5:50, 60:90] = 1
    targets = instance_targets(label, num_classes=3, limit=7, regions=True)
    torch.manual_seed(0)
    wanted = network(
        pixel_values=image,
        mask_labels=[target.masks.float() for target in targets],
        class_labels=[target.classes for target in targets],
    ).loss
    torch.manual_seed(0)
    assert sum(ours.losses(image, label).values()).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_auxiliary_losses_can_be_disabled(toy):
    image, label = torch.randn(1, 2, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.long)
    last = {"mask", "dice", "cross_entropy"}
    for name in NAMES:
        assert set(toy(name, auxiliary_losses=False).losses(image, label)) == last
        inner = {f"{kind}_{i}" for kind in last for i in range(2 if name == "maskformer" else 1)}
        assert set(toy(name).losses(image, label)) == last | inner


def test_every_decoder_layer_has_an_auxiliary_loss(toy):
    image, label = torch.randn(1, 2, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.long)
    losses = toy("maskformer_resnet_18", decoder_layers=4).losses(image, label)
    assert {name for name in losses if name.startswith("dice")} == {"dice", "dice_0", "dice_1", "dice_2"}


def test_classes_are_used_as_targets_on_request(toy):
    """Two components are one target of their class."""
    image, label = torch.randn(1, 2, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.long)
    label[..., 5:20, 5:20] = 1
    label[..., 40:60, 40:60] = 1
    by_class = toy("maskformer_resnet_18", target_masks="classes").eval()
    by_component = toy("maskformer_resnet_18").eval()
    both = label * 5
    torch.manual_seed(0)
    one = by_class.losses(image, label)
    assert one.keys() == by_component.losses(image, label, both).keys()
    assert one["dice"].item() != pytest.approx(by_component.losses(image, label)["dice"].item(), rel=1e-4)
    assert one["dice"].item() == pytest.approx(
        by_component.losses(image, label, both)["dice"].item(), rel=1e-5
    )


def queries(seed, *, count=12, classes=4, size=24):
    """Logits of queries of which several are sure, on disjoint and on overlapping places."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = 4 * torch.randn(count, classes + 1, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    centres = torch.randint(0, size, (count, 2, 1, 1), generator=generator)
    radii = torch.randint(2, 9, (count, 1, 1), generator=generator)
    mask_logits = 2 * (radii - (grid - centres).float().norm(dim=1))
    return class_logits, mask_logits


def processors():
    """transformers' two processors, and the size to which they bring masks; None leaves them as they are."""
    from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor

    return [(MaskFormerImageProcessor(), 24), (Mask2FormerImageProcessor(), 384)]


def outputs(class_logits, mask_logits):
    return SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None])


@pytest.mark.parametrize("seed", range(3))
def test_semantic_maps_equal_transformers(seed):
    for processor, size in processors():
        class_logits, mask_logits = queries(seed, size=size)
        (wanted,) = processor.post_process_semantic_segmentation(
            outputs(class_logits, mask_logits), return_segmentation_scores=True
        )
        scores = semantic_scores(class_logits, mask_logits)
        assert (scores - wanted.segmentation_scores).abs().max() < 1e-5
        assert torch.equal(scores.argmax(dim=0), wanted.segmentation)


@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.2), (1, 0.6), (2, 0.2), (3, 0.6)])
def test_instances_equal_transformers(seed, threshold):
    for processor, size in processors():
        class_logits, mask_logits = queries(seed, size=size)
        (wanted,) = processor.post_process_instance_segmentation(
            outputs(class_logits, mask_logits), threshold=threshold, return_binary_maps=True
        )
        masks = wanted["segmentation"]
        pairs = [
            (round(info["score"], 4), info["label_id"], int(mask.sum()))
            for info, mask in zip(wanted["segments_info"], masks, strict=bool(wanted["segments_info"]))
            if info["label_id"] != 0
        ]
        found = query_instances(class_logits, mask_logits, threshold=threshold, mask_threshold=0.5)
        ours = zip(
            found.scores.tolist(), found.classes.tolist(), found.masks.sum((1, 2)).tolist(), strict=True
        )
        assert sorted((round(score, 4), k, area) for score, k, area in ours) == sorted(pairs)
        assert len(found) == len(pairs)
        for box, mask in zip(found.boxes.int().tolist(), found.masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            assert box == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@pytest.mark.parametrize("fuse", [set(), {1}, {0, 2}])
def test_panoptic_maps_equal_transformers(fuse):
    """Regions, classes, scores and places are equal; numbers are ours, since theirs can stand for two regions."""
    limits = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_threshold": 0.8}
    compared = 0
    small, large = processors()
    for (processor, size), seed in [*product([small], range(9)), (large, 0), (large, 2)]:
        class_logits, mask_logits = queries(seed, size=size)
        (wanted,) = processor.post_process_panoptic_segmentation(
            outputs(class_logits, mask_logits), threshold=0.5, label_ids_to_fuse=fuse
        )
        infos = wanted["segments_info"]
        if numbers_stand_for_several(infos):
            continue
        compared += 1
        found = panoptic(class_logits, mask_logits, fuse=frozenset(fuse), **limits)
        first = {info["id"]: info for info in reversed(infos)}
        regions = sorted((r.class_index, round(r.score, 4), r.fused) for r in found.regions)
        assert regions == sorted(
            (i["label_id"], round(i["score"], 4), i["was_fused"]) for i in first.values()
        )
        ours = torch.tensor([-1] + [r.class_index for r in found.regions])[found.numbers.long()]
        theirs_by_number = {info["id"]: info["label_id"] for info in infos}
        expected = torch.full_like(ours, -1)
        for number, label in theirs_by_number.items():
            expected[wanted["segmentation"] == number] = label
        assert torch.equal(ours, expected)
    assert compared >= 4


def numbers_stand_for_several(infos):
    """Whether a number of theirs is given to two regions that are not one by fusion."""
    single = [info["id"] for info in infos if not info["was_fused"]]
    fused = {(info["id"], info["label_id"]) for info in infos if info["was_fused"]}
    numbers = [*single, *(number for number, _ in fused)]
    return len(numbers) != len(set(numbers))


def test_fused_classes_get_one_region_each():
    """Queries of the classes 1, 2, 1, 2 in four corners, with class 1 fused: three regions."""
    mask_logits = torch.full((4, 8, 8), -9.0)
    for i, (x, y) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        mask_logits[i, x : x + 4, y : y + 4] = 9.0
    class_logits = 9.0 * torch.nn.functional.one_hot(torch.tensor([1, 2, 1, 2]), 4)
    limits = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_threshold": 0.8}
    found = panoptic(class_logits, mask_logits, fuse=frozenset({1}), **limits)
    assert [(region.number, region.class_index, region.fused) for region in found.regions] == [
        (1, 1, True),
        (2, 2, False),
        (3, 2, False),
    ]
    assert found.numbers[::4, ::4].tolist() == [[1, 2], [1, 3]]
    assert len(panoptic(class_logits, mask_logits, fuse=frozenset(), **limits).regions) == 4
    nothing = panoptic(-class_logits, mask_logits, fuse=frozenset(), **limits | {"threshold": 0.99})
    assert nothing.regions == ()
    assert (nothing.numbers == 0).all()


@torch.no_grad()
def test_panoptic_maps_have_the_size_of_the_image(toy):
    model = toy(
        "mask2former_resnet_18", score_threshold=0.1, overlap_threshold=0.0, mask_threshold=0.01
    ).eval()
    model.network.class_predictor.bias[1] = 3.0
    (one,) = model.panoptic(torch.randn(1, 2, 45, 38))
    assert one.numbers.shape == (45, 38)
    assert len(one.regions) > 0
    assert {region.class_index for region in one.regions} == {1}


def test_backbone_follows_the_options():
    swin = _backbone(parse_options("mask2former_swin_base"), 5)
    assert (swin.num_channels, swin.embed_dim, swin.window_size) == (5, 128, 12)
    assert (swin.depths, swin.num_heads) == ([2, 2, 18, 2], [4, 8, 16, 32])


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("mask2former_swin_tiny", {"widths": [96, 192, 384, 700]}, "widths of a Swin transformer double"),
        ("mask2former_swin_tiny", {"swin_heads": [5, 6, 12, 24]}, "every entry of widths must be a multiple"),
        (
            "maskformer_resnet_18",
            {"hidden_channels": 96, "attention_heads": 7},
            "not a multiple of attention_heads",
        ),
        ("maskformer_resnet_18", {"hidden_channels": 32}, "greater than or equal to 64"),
        ("maskformer_resnet_18", {"backbone": "swin"}, "backbone"),
    ],
)
def test_invalid_options_raise(name, values, words):
    with pytest.raises(ConfigError, match=words):
        parse_options(name, toy_options(name) | values)
