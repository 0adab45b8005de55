from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.networks.nets import BasicUNet, DynUNet
from torch import nn

from medseg.errors import ModelError
from medseg.interop.state_dicts import (
    from_basic_unet,
    from_dynunet,
    from_plain_conv_unet,
    from_residual_encoder_unet,
)
from medseg.models import Stage, UNetConfig
from medseg.models.layers.memory_format import channels_last_format
from medseg.models.unet.network import UNet
from tests.helpers.networks import randomise

FEATURES = (4, 6, 8, 8)
CASES = {
    "2d": (2, [3, 3, 3, 3], [1, 2, 2, 2]),
    "2d_anisotropic": (2, [(1, 3), 3, 3, 3], [1, (1, 2), 2, (2, 1)]),
    "3d": (3, [3, 3, 3, 3], [1, 2, 2, 2]),
    "3d_anisotropic": (3, [(1, 3, 3), (1, 3, 3), 3, 3], [1, (1, 2, 2), 2, (1, 2, 2)]),
}
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_same_logits(theirs: nn.Module, config: UNetConfig, state: dict, dims: int) -> None:
    ours = UNet(config, dims).eval()
    ours.load_state_dict(state)
    image = torch.randn(2, config.in_channels, *(32, 16, 16)[:dims])
    with torch.no_grad():
        wanted = theirs(image)
        assert wanted.std() > 0.01
        assert (ours(image) - wanted).abs().max() < 1e-5
        exact = theirs.double()(image.double())
        theirs.float()
        # Another layout adds in another order: as near to the truth as the other package itself, not equal to it.
        ours.to(memory_format=channels_last_format(dims))
        assert (ours(image) - exact).abs().max() < 2 * (wanted - exact).abs().max() + 1e-6


def nnunet(kind: type, dims: int, kernels: list, strides: list, **more) -> nn.Module:
    return randomise(
        kind(
            2,
            4,
            FEATURES,
            nn.Conv2d if dims == 2 else nn.Conv3d,
            kernels,
            strides,
            num_classes=3,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            **more,
        )
    ).eval()


def plain(case: str) -> tuple[nn.Module, UNetConfig, int]:
    dims, kernels, strides = CASES[case]
    more = {"n_conv_per_stage": [2, 1, 3, 2], "n_conv_per_stage_decoder": [1, 2, 2]}
    theirs = nnunet(PlainConvUNet, dims, kernels, strides, **more)
    config = UNetConfig.from_channels(
        2,
        3,
        FEATURES,
        num_blocks=[2, 1, 3, 2],
        kernel_size=kernels,
        strides=strides,
        decoder_num_blocks=[1, 2, 2],
        bias=True,
    )
    return theirs, config, dims


def residual(case: str) -> tuple[nn.Module, UNetConfig, int]:
    dims, kernels, strides = CASES[case]
    more = {"n_blocks_per_stage": [1, 3, 2, 2], "n_conv_per_stage_decoder": 1}
    theirs = nnunet(ResidualEncoderUNet, dims, kernels, strides, **more)
    config = UNetConfig.from_channels(
        2,
        3,
        FEATURES,
        num_blocks=[1, 3, 2, 2],
        kernel_size=kernels,
        strides=strides,
        decoder_num_blocks=1,
        block="res",
        decoder_block="basic",
        stem_channels=FEATURES[0],
        bias=True,
    )
    return theirs, config, dims


def dynunet(case: str, res_block: bool, **more) -> tuple[nn.Module, UNetConfig, int]:
    dims, kernels, strides = CASES[case]
    theirs = randomise(
        DynUNet(
            dims,
            2,
            3,
            kernels,
            strides,
            strides[1:],
            filters=FEATURES,
            res_block=res_block,
            norm_name=NORM,
            **more,
        )
    ).eval()
    decoder = [Stage(channels=FEATURES[i], kernel_size=kernels[i + 1]) for i in (2, 1, 0)]
    config = UNetConfig.from_channels(
        2,
        3,
        FEATURES,
        num_blocks=1 if res_block else 2,
        kernel_size=kernels,
        strides=strides,
        decoder_stages=decoder,
        block="res" if res_block else "basic",
        decoder_block="basic",
        residual_downsample="conv",
        bias=more.get("trans_bias", False),
    )
    return theirs, config, dims


NORM = ("INSTANCE", {"affine": True})


@cases
def test_logits_equal_plain_conv_unet(case):
    theirs, config, dims = plain(case)
    assert_same_logits(theirs, config, from_plain_conv_unet(theirs.state_dict(), config), dims)


@cases
def test_logits_equal_residual_encoder_unet(case):
    theirs, config, dims = residual(case)
    assert_same_logits(theirs, config, from_residual_encoder_unet(theirs.state_dict(), config), dims)


@pytest.mark.parametrize("trans_bias", [False, True])
@pytest.mark.parametrize("res_block", [False, True])
@cases
def test_logits_equal_dynunet(case, res_block, trans_bias):
    theirs, config, dims = dynunet(case, res_block, trans_bias=trans_bias)
    assert_same_logits(theirs, config, from_dynunet(theirs.state_dict(), config), dims)


def test_dynunet_projects_where_only_the_stride_changes():
    _, config, _ = dynunet("3d", res_block=True)
    assert UNet(config, 3).encoder[3].blocks[0].shortcut is not None  # 8 to 8 channels, stride 2


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("features", [(4, 4, 8, 8, 16, 4), (4, 8, 6, 12, 16, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_logits_equal_basic_unet(dims, features, norm):
    theirs = randomise(BasicUNet(dims, 2, 3, features, norm=(norm, {"affine": True}))).eval()
    _, f1, f2, f3, f4, f5 = features
    config = UNetConfig.from_channels(
        2,
        3,
        features[:5],
        downsample="maxpool",
        negative_slope=0.1,
        norm=norm,
        bias=True,
        upsample_channels=[f4 // 2, f3 // 2, f2 // 2, f1],
        decoder_stages=[Stage(channels=width) for width in (f3, f2, f1, f5)],
    )
    state = from_basic_unet(theirs.state_dict(), config)
    assert_same_logits(theirs, config, state, dims)


def test_deep_supervision_heads_are_imported_if_used():
    theirs, config, dims = plain("2d")
    config = config.replace(deep_supervision=True)
    state = from_plain_conv_unet(theirs.state_dict(), config)
    assert torch.equal(state["head.weight"], theirs.decoder.seg_layers[2].weight)
    assert torch.equal(state["aux_heads.0.weight"], theirs.decoder.seg_layers[1].weight)
    assert "aux_heads.1.weight" not in state
    assert_same_logits(theirs, config, state, dims)


@pytest.mark.parametrize(
    ("make", "convert"), [(plain, from_plain_conv_unet), (residual, from_residual_encoder_unet)]
)
def test_missing_wrong_and_superfluous_tensors_raise(make, convert):
    theirs, config, _ = make("3d")
    state = theirs.state_dict()
    key = "decoder.transpconvs.1.weight"
    with pytest.raises(
        ModelError, match=r"no tensor 'decoder.transpconvs.1.weight'.*'decoder.1.up.conv.weight'"
    ):
        convert({k: v for k, v in state.items() if k != key}, config)
    with pytest.raises(ModelError, match=r"shape of .*: found \(8, 6, 1, 2, 2\), expected \(8, 6, 2, 2, 2\)"):
        convert({**state, key: state[key][:, :, :1]}, config)
    with pytest.raises(ModelError, match=r"1 tensors have no place in the config, such as 'other\.weight'"):
        convert({**state, "other.weight": torch.zeros(1)}, config)


def test_other_architecture_raises():
    theirs, _, _ = plain("3d")
    _, residual_config, _ = residual("3d")
    with pytest.raises(ModelError, match=r"no tensor 'encoder\.stem"):
        from_residual_encoder_unet(theirs.state_dict(), residual_config)
    with pytest.raises(ModelError, match="it has no equivalent of 'stem"):
        from_plain_conv_unet(theirs.state_dict(), residual_config)
    with pytest.raises(ModelError, match="no convolution kernels"):
        from_plain_conv_unet({}, residual_config)


def test_dynunet_with_other_padding_raises():
    config = UNetConfig.from_channels(1, 2, (4, 8, 8), strides=[1, 3, 2])
    with pytest.raises(ModelError, match=r"stage 1 pads differently.*found \(3, 3\)"):
        from_dynunet({}, config)


def test_basic_unet_has_five_stages():
    with pytest.raises(ModelError, match="found 3, expected 5"):
        from_basic_unet({}, UNetConfig.from_channels(1, 2, (4, 8, 8)))
