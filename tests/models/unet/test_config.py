from __future__ import annotations

import json

import pytest

from medseg.errors import ConfigError
from medseg.models import AttentionUNetConfig, ResUNetConfig, Stage, UNetConfig, UNetOptions


def parsed(**values) -> UNetOptions:
    return UNetOptions.parse(values, source="exp.yaml")


def test_default_has_four_stages():
    options = parsed()
    assert [s.channels for s in options.encoder_stages] == [32, 64, 128, 256]
    assert [s.stride for s in options.encoder_stages] == [1, 2, 2, 2]
    assert {(s.num_blocks, s.kernel_size, s.dropout) for s in options.encoder_stages} == {(2, 3, 0.0)}
    assert options.decoder_stages is None
    assert [s.channels for s in options.decoder()] == [128, 64, 32]
    assert [s.stride for s in options.decoder()] == [1, 1, 1]
    assert options.bottom() is None


def test_the_short_form_expands_to_stages():
    short = parsed(
        channels=[4, 8, 16],
        num_blocks=[1, 2, 3],
        kernel_size=[[1, 3, 3], 3, 5],
        strides=[1, [1, 2, 2], 4],
        dropout=0.1,
        decoder_num_blocks=[2, 1],
    )
    long = UNetOptions(
        encoder_stages=(
            Stage(channels=4, num_blocks=1, kernel_size=(1, 3, 3), stride=1, dropout=0.1),
            Stage(channels=8, num_blocks=2, kernel_size=3, stride=(1, 2, 2), dropout=0.1),
            Stage(channels=16, num_blocks=3, kernel_size=5, stride=4, dropout=0.1),
        ),
        decoder_stages=(
            Stage(channels=8, num_blocks=2, kernel_size=3, dropout=0.1),
            Stage(channels=4, num_blocks=1, kernel_size=(1, 3, 3), dropout=0.1),
        ),
    )
    assert short == long


def test_one_stride_applies_to_all_stages_except_the_first():
    assert [s.stride for s in parsed(channels=[4, 8, 8], strides=3).encoder_stages] == [1, 3, 3]


def test_convnext_default_kernel_is_seven():
    assert {s.kernel_size for s in parsed(block="convnext").encoder_stages} == {7}
    assert {s.kernel_size for s in parsed(block="convnext", kernel_size=3).encoder_stages} == {3}


def test_bottleneck_can_be_set():
    assert parsed(bottleneck="infer").bottom() == parsed().encoder_stages[-1].replace(stride=1)
    assert parsed(bottleneck={"channels": 7}).lower_widths()[0] == 7


def test_upsampled_widths_follow_the_mode_and_upsample_channels():
    assert parsed().up_widths() == (128, 64, 32)
    assert parsed(upsample="linear").up_widths() == (256, 128, 64)
    assert parsed(upsample="linear", upsample_channels=[9, 8, 7]).up_widths() == (9, 8, 7)


def test_resolved_config_round_trips():
    values = {"channels": [4, 8], "strides": [[1, 2, 2], 2], "bottleneck": {"channels": 6}, "norm": "group"}
    options = parsed(**values)
    assert "channels" not in options.to_plain()
    assert UNetOptions.parse(options.to_plain()) == options
    assert "stride: [1, 2, 2]" in options.to_yaml()
    assert options.replace(norm="layer").encoder_stages == options.encoder_stages
    json.dumps(UNetOptions.model_json_schema())


def test_from_channels_builds_the_three_families():
    config = UNetConfig.from_channels(1, 14, channels=(32, 64), block="res", norm="group")
    assert (config.in_channels, config.out_channels, config.block, config.norm) == (1, 14, "res", "group")
    assert ResUNetConfig.from_channels(1, 2, (4, 8)).block == "res"
    attention = AttentionUNetConfig.from_channels(1, 2, (4, 8))
    assert (attention.downsample, attention.upsample, attention.skip_merge) == ("maxpool", "linear", "concat")
    assert attention.deep_supervision
    with pytest.raises(ConfigError, match="in_channels"):
        UNetConfig.from_channels(0, 2, (4, 8))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chanels": [4, 8]}, ["chanels: unknown key", "Did you mean 'channels'?"]),
        ({"norm": "insance"}, ["norm", "'instance'", "found 'insance'"]),
        ({"channels": [8]}, ["channels has 1 entries, expected at least 2"]),
        ({"channels": [8, 0]}, ["channels.1", "greater than 0"]),
        ({"channels": [4, 8], "kernel_size": 4}, ["kernel_size", "odd", "found 4"]),
        ({"channels": [4, 8], "kernel_size": [[3, 3, 3, 3], 3]}, ["kernel_size", "one per axis"]),
        ({"channels": [4, 8], "kernel_size": True}, ["kernel_size", "odd"]),
        ({"channels": [4, 8], "strides": [1, 0]}, ["strides", ">= 1"]),
        ({"channels": [4, 8], "strides": [1, 2, 2]}, ["strides has 3 entries, expected 2"]),
        ({"channels": [4, 8], "num_blocks": [1]}, ["num_blocks has 1 entries, expected 2"]),
        ({"channels": [4, 8], "num_blocks": 1.5}, ["num_blocks", "whole number"]),
        (
            {"channels": [4, 8], "decoder_num_blocks": [1, 1]},
            ["decoder_num_blocks has 2 entries, expected 1"],
        ),
        ({"channels": [4, 8], "dropout": 1.0}, ["dropout", "less than 1"]),
        ({"channels": [4, 8], "encoder_stages": [{"channels": 4}] * 2}, ["both given", "channels"]),
        ({"encoder_stages": [{"channels": 4}]}, ["found 1 encoder stage, expected at least 2"]),
        (
            {"encoder_stages": [{"channels": 4, "chanel": 1}, {"channels": 4}]},
            ["encoder_stages.0.chanel", "Did you mean 'channels'?"],
        ),
        (
            {"decoder_num_blocks": 1, "decoder_stages": [{"channels": 4}] * 3},
            ["decoder_stages and decoder_num_blocks"],
        ),
        ({"decoder_stages": [{"channels": 4}]}, ["decoder_stages has 1 entries, expected 3"]),
        ({"upsample_channels": [4]}, ["upsample_channels has 1 entries, expected 3"]),
        ({"bottleneck": {"channels": 4, "stride": 2}}, ["stride 2, expected 1"]),
        ({"bottleneck": "inferred"}, ["bottleneck", "'infer'"]),
        ({"bottleneck": {"chanels": 4}}, ["bottleneck.channels: missing", "bottleneck.chanels"]),
        (
            {"skip_merge": "add", "upsample": "linear"},
            ["adds 256 upsampled channels to 128", "set upsample_channels to [128, 64, 32]"],
        ),
    ],
)
def test_invalid_options_raise(values, words):
    with pytest.raises(ConfigError) as caught:
        parsed(**values)
    assert str(caught.value).startswith("exp.yaml: ")
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(ConfigError, match="3 mistakes") as caught:
        parsed(norm="x", num_blocks=0, actt="relu")
    assert all(key in str(caught.value) for key in ("norm", "num_blocks", "Did you mean 'act'?"))


def test_add_merge_accepts_equal_widths():
    assert parsed(skip_merge="add").up_widths() == parsed().skip_widths()
    assert parsed(skip_merge="add", upsample="linear", upsample_channels=[128, 64, 32]).skip_merge == "add"
