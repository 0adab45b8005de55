"""What is taken from trained weights: tables written by hand, and the logits that follow."""

from __future__ import annotations

import pytest
import torch

from medseg.errors import ConfigError, ModelError
from medseg.fine_tuning.match_weights import TrainedWeights, take_weights
from medseg.fine_tuning.network_ends import Ends
from medseg.fine_tuning.settings import AdaptSettings
from tests.fine_tuning.conftest import cells
from tests.helpers.networks import toy_options

SMALL = {"channels": [4, 8], "num_blocks": 1}
ORGANS = ("background", "liver", "spleen", "spine")
FAMILIES = (
    *(
        "attention_unet_3d",
        "fcn_resnet_50",
        "mask2former_swin_tiny",
        "mask_rcnn_resnet_50_c4",
        "mask_rcnn_resnet_50_fpn",
    ),
    *(
        "mask_rcnn_vit_adapter_small",
        "maskformer_resnet_18",
        "monai_attention_unet_2d",
        "monai_unet_3d",
        "segresnet_2d",
    ),
)
# encoder: two stages of kernel and two numbers of the norm; decoder: also kernel and bias of the upsampling
ENCODER, DECODER = 6, 5


def image(channels, *size, seed=3):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def test_equal_names_take_everything(network):
    source, here = (network("unet_2d", ["CT"], ORGANS, seed=seed, **SMALL) for seed in (1, 0))
    assert here.take(source) == [
        ("channel", "CT", "CT", "taken", ""),
        ("output", "background", "background", "taken", ""),
        ("output", "liver", "liver", "taken", ""),
        ("output", "spleen", "spleen", "taken", ""),
        ("output", "spine", "spine", "taken", ""),
        ("tensors", f"encoder ({ENCODER})", "encoder", "taken", ""),
        ("tensors", f"decoder ({DECODER})", "decoder", "taken", ""),
        ("tensors", "head (2)", "head", "taken", ""),
    ]
    assert torch.equal(here.logits(image(1, 16, 16)), source.logits(image(1, 16, 16)))


def test_heads_are_matched_by_name_and_renamed_ones_by_the_map(network):
    source = network("unet_2d", ["CT"], ("anything", "hepar", "spleen", "spine"), seed=1, **SMALL)
    here = network("unet_2d", ["CT"], ("background", "spleen", "pancreas", "liver"), **SMALL)
    fresh = {name: tensor.clone() for name, tensor in here.model.head.state_dict().items()}
    table = here.take(source, labels={"liver": "hepar"})
    assert table == [
        ("channel", "CT", "CT", "taken", ""),
        ("output", "background", "anything", "taken", ""),
        ("output", "spleen", "spleen", "taken", ""),
        ("output", "pancreas", "", "new", "fresh"),
        ("output", "liver", "hepar", "taken", ""),
        ("output", "", "spine", "left", ""),
        ("tensors", f"encoder ({ENCODER})", "encoder", "taken", ""),
        ("tensors", f"decoder ({DECODER})", "decoder", "taken", ""),
        ("tensors", "head (2)", "head", "adapted", "to the outputs"),
    ]
    found, old = here.logits(image(1, 16, 16)), source.logits(image(1, 16, 16))
    assert torch.allclose(found[:, [0, 1, 3]], old[:, [0, 2, 1]], atol=1e-6)
    assert torch.equal(here.model.head.weight[2], fresh["weight"][2])
    assert torch.equal(here.model.head.bias[2], fresh["bias"][2])


def test_a_new_channel_is_zero_and_gives_the_old_logits(network):
    """From one channel to two: all channels of the source are used, so that nothing is left to share."""
    source = network("unet_3d", ["CT"], ORGANS, seed=1, **SMALL)
    for adapt in ({}, {"new_channels": "zero"}):
        here = network("unet_3d", ["PET", "CT"], ORGANS, **SMALL)
        table = here.take(source, **adapt)
        assert table[:2] == [
            ("channel", "PET", "", "new", "zero"),
            ("channel", "CT", "CT", "taken", ""),
        ]
        assert table[-4:] == [
            ("tensors", "encoder (1)", "encoder", "adapted", "to the channels"),
            ("tensors", f"encoder ({ENCODER - 1})", "encoder", "taken", ""),
            ("tensors", f"decoder ({DECODER})", "decoder", "taken", ""),
            ("tensors", "head (2)", "head", "taken", ""),
        ]
        both = image(2, 8, 8, 8)
        assert torch.equal(here.logits(both), source.logits(both[:, 1:]))


def test_two_channels_to_one_and_channels_in_another_order(network):
    source = network("unet_2d", ["T1", "T2"], ORGANS, seed=1, **SMALL)
    one = network("unet_2d", ["T2"], ORGANS, **SMALL)
    assert one.take(source)[:2] == [
        ("channel", "T2", "T2", "taken", ""),
        ("channel", "", "T1", "left", ""),
    ]
    first = "encoder.0.blocks.0.conv.weight"
    old = source.model.state_dict()[first]
    assert torch.equal(one.model.state_dict()[first], old[:, 1:])

    turned = network("unet_2d", ["T2", "T1"], ORGANS, **SMALL)
    assert turned.take(source)[:2] == [
        ("channel", "T2", "T2", "taken", ""),
        ("channel", "T1", "T1", "taken", ""),
    ]
    both = image(2, 16, 16)
    assert torch.allclose(turned.logits(both.flip(1)), source.logits(both), atol=1e-5)


def test_new_channels_share_the_kernels_of_unused_ones(network):
    """The sum over the channels stays, so that equal channels give the old response."""
    source = network("unet_2d", ["T1", "T2"], ORGANS, seed=1, **SMALL)
    here = network("unet_2d", ["T1", "FLAIR", "PD"], ORGANS, **SMALL)
    assert here.take(source)[:4] == [
        ("channel", "T1", "T1", "taken", ""),
        ("channel", "FLAIR", "", "new", "share of T2"),
        ("channel", "PD", "", "new", "share of T2"),
        ("channel", "", "T2", "left", ""),
    ]
    grey = image(1, 16, 16)
    assert torch.allclose(
        here.logits(grey.expand(-1, 3, -1, -1)), source.logits(grey.expand(-1, 2, -1, -1)), atol=1e-4
    )
    single = network("unet_2d", ["MR"], ORGANS, **SMALL)
    single.take(source)
    first = "encoder.0.blocks.0.conv.weight"
    averaged = source.model.state_dict()[first].sum(1, keepdim=True)
    assert torch.allclose(single.model.state_dict()[first], averaged)


def test_a_renamed_channel_is_taken(network):
    source = network("unet_2d", ["T1", "T2"], ORGANS, seed=1, **SMALL)
    here = network("unet_2d", ["t2_tse"], ORGANS, **SMALL)
    table = here.take(source, channels={"t2_tse": "T2"})
    assert table[:2] == [("channel", "t2_tse", "T2", "taken", ""), ("channel", "", "T1", "left", "")]


def test_auxiliary_heads_may_be_new_or_left(network):
    deep = {"channels": [4, 8, 8], "num_blocks": 1}
    supervised = network("unet_2d", ["CT"], ORGANS, seed=1, deep_supervision=True, **deep)
    plain = network("unet_2d", ["CT"], ORGANS, seed=2, **deep)
    assert plain.take(supervised)[-1] == ("tensors", "", "aux_heads (2)", "left", "")
    again = network("unet_2d", ["CT"], ORGANS, deep_supervision=True, **deep)
    assert again.take(plain)[-1] == ("tensors", "aux_heads (2)", "", "new", "fresh")


def test_regions_and_labels_do_not_share_their_outputs(network):
    source = network("unet_2d", ["CT"], ("tumour", "core"), seed=1, regions=True, **SMALL)
    same = network("unet_2d", ["CT"], ("core", "edema"), regions=True, **SMALL)
    assert same.take(source)[1:4] == [
        ("output", "core", "core", "taken", ""),
        ("output", "edema", "", "new", "fresh"),
        ("output", "", "tumour", "left", ""),
    ]
    labels = network("unet_2d", ["CT"], ("background", "core"), **SMALL)
    table = labels.take(source)
    assert [row[3] for row in table if row[0] == "output"] == ["new", "new", "left", "left"]
    assert table[-1] == ("tensors", "head (2)", "", "new", "fresh")


def test_a_2d_network_is_inflated_on_request(network):
    """Each slice is seen alone with kernels in the middle, if nothing else joins the slices."""
    options = {"channels": [4, 8], "num_blocks": 1, "norm": "none"}
    source = network("unet_2d", ["CT"], ORGANS, seed=1, **options)
    strides = {"strides": [[1, 1, 1], [2, 2, 1]]}
    here = network("unet_3d", ["CT"], ORGANS, **options, **strides)
    with pytest.raises(ConfigError, match=r"Set model.adapt.inflate to mean or centre"):
        here.take(source)
    table = here.take(source, inflate="centre")
    assert table[-6:] == [
        ("tensors", "encoder (2)", "encoder", "adapted", "to three axes"),
        ("tensors", "encoder (2)", "encoder", "taken", ""),
        ("tensors", "decoder (2)", "decoder", "adapted", "to three axes"),
        ("tensors", "decoder (2)", "decoder", "taken", ""),
        ("tensors", "head (1)", "head", "adapted", "to three axes"),
        ("tensors", "head (1)", "head", "taken", ""),
    ]
    volume = image(1, 16, 16, 3)
    slices = torch.stack([source.logits(volume[..., z]) for z in range(3)], dim=-1)
    assert torch.allclose(here.logits(volume), slices, atol=1e-4)
    with pytest.raises(ConfigError, match="found weights of a 3D network for the 2D network UNet2d"):
        source.take(here, inflate="mean")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_model_takes_its_own_weights_for_other_ends(network, name):
    options = toy_options(name)
    source = network(name, ["a", "b"], ("background", "one", "two"), seed=1, **options)
    here = network(name, ["b", "c"], ("background", "two", "three", "four"), **options)
    fresh = {key: tensor.clone() for key, tensor in here.model.state_dict().items()}
    table = here.take(source)
    assert [row[:4] for row in table if row[0] != "tensors"] == [
        ("channel", "b", "b", "taken"), ("channel", "c", "", "new"), ("channel", "", "a", "left"),
        ("output", "background", "background", "taken"), ("output", "two", "two", "taken"),
        ("output", "three", "", "new"), ("output", "four", "", "new"), ("output", "", "one", "left"),
    ]  # fmt: skip
    same = 0
    for key, tensor in here.model.state_dict().items():
        old = source.model.state_dict()[key]
        if old.shape == tensor.shape and torch.equal(old, tensor):
            same += 1
        elif old.shape == tensor.shape:  # the first kernels
            assert torch.equal(old.roll(-1, 1), tensor), key
        else:
            assert not torch.equal(tensor, fresh[key]), key
    assert same > 0.8 * len(fresh)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet_2d", {"channels": [4, 16], "num_blocks": 1}, "encoder.1.blocks.0.conv.weight: found (8, 4, 3, 3), expected (16, 4, 3, 3)"),
        ("unet_2d", {"channels": [4, 8], "num_blocks": 2}, "encoder.0.blocks.1.conv.weight: found no such tensor"),
        ("unet_2d", {"channels": [4, 8, 8], "num_blocks": 1}, "and 10 more. Set the options of model"),
        ("resunet_2d", {"channels": [4, 8], "num_blocks": 1}, "the weights do not fit ResUNet2d"),
        ("segresnet_2d", {}, "the weights do not fit MonaiNetwork"),
    ],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused_and_nothing_is_changed(network, name, options, message):
    source = network("unet_2d", ["CT"], ORGANS, seed=1, **SMALL)
    here = network(name, ["CT"], ORGANS, **options)
    before = {key: tensor.clone() for key, tensor in here.model.state_dict().items()}
    with pytest.raises(ModelError) as error:
        here.take(source)
    assert message in str(error.value)
    assert str(error.value).startswith("source: ")
    assert all(torch.equal(tensor, before[key]) for key, tensor in here.model.state_dict().items())


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"labels": {"livr": "liver"}}, "model.adapt.labels: found 'livr', expected one of background, liver, spleen, spine. Did you mean 'liver'?"),
        ({"labels": {"liver": "hepr"}}, "model.adapt.labels.liver: found 'hepr', expected a name of source: background, hepar, spleen, spine. Did you mean 'hepar'?"),
        ({"channels": {"CT": "PET"}}, "model.adapt.channels.CT: found 'PET', expected a name of source: T1"),
        ({"new_channels": "zero"}, "model.adapt.new_channels: found zero, but source has none of the channels CT (it has T1)"),
    ],
)  # fmt: skip
def test_names_that_do_not_exist_are_refused(network, adapt, message):
    source = network("unet_2d", ["T1"], ("background", "hepar", "spleen", "spine"), seed=1, **SMALL)
    with pytest.raises(ConfigError) as error:
        network("unet_2d", ["CT"], ORGANS, **SMALL).take(source, **adapt)
    assert message in str(error.value)


def test_unknown_names_leave_outputs_new_and_keep_the_order_of_channels(network):
    source = network("unet_2d", ["T1", "T2"], ORGANS, seed=1, **SMALL)
    here = network("unet_2d", ["a", "b"], ORGANS, **SMALL)

    def take(**names):
        adapt = AdaptSettings.parse(names)
        ends = Ends(adapt.source_channels, adapt.source_labels)
        tensors = TrainedWeights("file", source.model.state_dict(), ends, 2)
        return [cells(row) for row in take_weights(here.model, here.build, here.ends, tensors, adapt)]

    table = take()
    assert table[:3] == [
        ("channel", "a", "input 1", "taken", ""),
        ("channel", "b", "input 2", "taken", ""),
        ("output", "background", "", "new", "fresh"),
    ]
    assert ("output", "", "output 4", "left", "") in table
    named = take(source_labels=["background", "liver", "x", "y"], source_channels=["b", "a"])
    assert named[:4] == [
        ("channel", "a", "a", "taken", ""),
        ("channel", "b", "b", "taken", ""),
        ("output", "background", "background", "taken", ""),
        ("output", "liver", "liver", "taken", ""),
    ]
    with pytest.raises(ConfigError, match=r"model.adapt.source_labels: found 1 names, expected 4"):
        take(source_labels=["background"])
