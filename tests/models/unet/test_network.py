from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.errors import ConfigError, ModelError
from medseg.models import ResUNet2d, ResUNet3d, ResUNetConfig, Stage, UNet2d, UNet3d, UNetConfig
from medseg.models.layers.memory_format import channels_last_format, is_channels_last
from medseg.models.layers.resample import pixel_shuffle
from medseg.models.unet.blocks import ResidualBlock
from medseg.models.unet.network import UNet, shrink_label, supervision_weights
from tests.helpers.combinations import covering
from tests.helpers.networks import cross_entropy, randomise

SIZES = {2: (5, 6), 3: (5, 6, 7)}
BLOCKS = ("basic", "res", "convnext")
NORMS = ("batch", "group", "instance", "layer", "none")
DOWNSAMPLINGS = ("conv", "maxpool", "avgpool")
UPSAMPLINGS = ("transpose", "linear", "nearest", "pixelshuffle")


def tiny(dims: int, in_channels: int = 2, channels=(4, 8), **fields) -> UNet:
    torch.manual_seed(0)
    values = {"num_blocks": 1, "kernel_size": 3, **fields}
    config = UNetConfig.from_channels(in_channels, 2, channels, **values)
    return UNet2d(config) if dims == 2 else UNet3d(config)


def image_of(dims: int, channels: int = 2, n: int = 2) -> Tensor:
    return torch.randn(n, channels, *SIZES[dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("dims", "block", "norm", "merge", "downsample", "upsample"),
    covering((2, 3), BLOCKS, NORMS, ("concat", "add"), DOWNSAMPLINGS, UPSAMPLINGS),
)
def test_any_three_options_keep_the_size_and_have_gradients(dims, block, norm, merge, downsample, upsample):
    widths = [4] if merge == "add" else None
    fields = {"block": block, "norm": norm, "skip_merge": merge, "downsample": downsample}
    model = randomise(tiny(dims, upsample=upsample, upsample_channels=widths, **fields), kernels=True)
    image = image_of(dims)
    logits = model(image)
    assert logits.shape == (2, 2, *SIZES[dims])
    assert logits.isfinite().all()
    (logits * torch.randn_like(logits)).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("dims", "block", "norm", "downsample", "upsample", "in_channels"),
    covering((2, 3), BLOCKS, NORMS, DOWNSAMPLINGS, UPSAMPLINGS, (1, 2)),
)
def test_channels_last_is_kept_by_every_module(dims, block, norm, downsample, upsample, in_channels):
    fields = {"block": block, "norm": norm, "downsample": downsample, "upsample": upsample}
    fields["residual_downsample"] = "conv" if in_channels == 2 else "avgpool"
    model = tiny(dims, in_channels, **fields).eval()
    image = image_of(dims, in_channels)
    with torch.no_grad():
        wanted = model(image)
        model.to(memory_format=channels_last_format(dims))
        lost = watch_layout(model)
        found = model(image)  # the image itself is in the default layout
        model(image.to(memory_format=channels_last_format(dims)))
    assert lost == []
    assert (found - wanted).abs().max() < 1e-4


def watch_layout(model: nn.Module) -> list[str]:
    """Names of modules that answer in another layout than channels-last; filled by forward passes."""
    lost: list[str] = []

    def hook(name: str):
        return lambda module, args, out: None if is_channels_last(out) else lost.append(name)

    for name, module in model.named_modules():
        if name:  # the model crops its result, which is a view
            module.register_forward_hook(hook(name))
    return lost


@pytest.mark.parametrize("dims", [2, 3])
def test_default_memory_format_is_kept(dims):
    model = tiny(dims, norm="layer", upsample="pixelshuffle", block="res")
    kept = []
    for stage in (*model.encoder, *model.decoder):
        stage.register_forward_hook(lambda module, args, out: kept.append(out.is_contiguous()))
    model(image_of(dims))
    assert kept == [True, True, True]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("last", [False, True])
def test_bfloat16_autocast_is_close_to_float32(dims, norm, last):
    model = tiny(dims, norm=norm)
    if last:
        model.to(memory_format=channels_last_format(dims))
    image = image_of(dims)
    wanted = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(image)
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("dims", "block", "upsample", "downsample"),
    covering((2, 3), BLOCKS, UPSAMPLINGS, DOWNSAMPLINGS, together=2),
)
def test_bfloat16_network_is_close_to_float32(dims, block, upsample, downsample):
    norm = NORMS[(len(upsample) + len(downsample)) % 4]
    model = tiny(dims, block=block, upsample=upsample, downsample=downsample, norm=norm).eval()
    model.to(memory_format=channels_last_format(dims))
    image = image_of(dims)
    with torch.no_grad():
        wanted = model(image)
        found = model.bfloat16()(image.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), dims=st.sampled_from([2, 3]))
def test_logits_have_the_size_of_any_image(data, dims):
    size = tuple(data.draw(st.lists(st.integers(1, 13), min_size=dims, max_size=dims)))
    model = tiny(dims, 1, (2, 4, 4), norm="layer", strides=[1, 2, (1, 3, 2)[:dims]])
    assert model.divisor == (2, 6, 4)[:dims]
    assert model(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_padding_repeats_the_last_voxels():
    model = tiny(2).eval()
    image = image_of(2)  # 5×6 becomes 6×6
    by_hand = F.pad(image, (0, 0, 0, 1), mode="replicate")
    assert torch.equal(model(image), model(by_hand)[:, :, :5])


@pytest.mark.parametrize("dims", [2, 3])
def test_strided_first_stage_returns_full_size(dims):
    model = tiny(dims, strides=[2, 2])
    assert model.divisor == (4,) * dims
    assert model(image_of(dims)).shape[2:] == SIZES[dims]


@pytest.mark.parametrize(
    ("dims", "act", "block"), covering((2, 3), ("relu", "leaky_relu", "gelu", "silu"), BLOCKS, together=2)
)
def test_stage_options_are_applied(dims, act, block):
    kernel, stride = (3, 1, 5)[:dims], (1, 2, 2)[:dims]
    config = UNetConfig(
        in_channels=1,
        out_channels=3,
        encoder_stages=(
            Stage(channels=6, kernel_size=kernel, dilation=2, dropout=0.5),
            Stage(channels=8, num_blocks=3, stride=stride, use_attention=True),
        ),
        decoder_stages=(Stage(channels=5, num_blocks=1),),
        bottleneck=Stage(channels=10, num_blocks=1),
        block=block,
        decoder_block="res",
        act=act,
        stem_channels=3,
        final_kernel_size=3,
        align_corners=True,
        upsample="linear",
        bias=True,
    )
    model = randomise(UNet(config, dims), kernels=True)
    image = image_of(dims, 1)
    logits = model(image)
    assert logits.shape == (2, 3, *SIZES[dims])
    assert not torch.equal(logits, model(image))  # dropout
    model.eval()
    assert torch.equal(model(image), model(image))
    assert model.head.in_channels == 5
    assert len(model.encoder[1].blocks) == 3
    assert model.bottleneck.blocks[0] is not None


def test_self_attention_mixes_all_voxels_and_starts_as_identity():
    attention = tiny(
        2, channels=(4, 64), bottleneck={"channels": 64, "use_attention": True}
    ).bottleneck.attention
    assert attention.heads == 2
    x = torch.randn(1, 64, 4, 4)
    assert torch.equal(attention(x), x)
    nn.init.normal_(attention.out.weight)
    changed = x.clone()
    changed[..., 0, 0] += torch.randn(64)
    assert ((attention(changed) - attention(x))[..., 3, 3].abs() > 1e-6).any()


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_equals_torch_in_2d(factor):
    x = torch.randn(2, 4 * factor**2, 3, 5)
    wanted = F.pixel_shuffle(x, factor)
    assert torch.equal(pixel_shuffle(x, (factor, factor)), wanted)
    last = pixel_shuffle(x.to(memory_format=torch.channels_last), (factor, factor))
    assert torch.equal(last, wanted)
    assert is_channels_last(last)


def test_pixel_shuffle_3d_puts_each_channel_in_its_place():
    x = torch.arange(12.0).reshape(1, 12, 1, 1, 1)
    out = pixel_shuffle(x, (1, 2, 3))
    assert out.shape == (1, 2, 1, 2, 3)
    assert torch.equal(out.flatten(), torch.arange(12.0))


def test_bias_follows_the_norm():
    for norm, wanted in {
        "batch": False,
        "instance": False,
        "group": True,
        "layer": True,
        "none": True,
    }.items():
        model = tiny(2, norm=norm)
        assert (model.encoder[0].blocks[0].conv.bias is not None) == wanted
        assert model.decoder[0].up.conv.bias is not None
    assert tiny(2, bias=True).encoder[0].blocks[0].conv.bias is not None
    assert tiny(2, bias=False).decoder[0].up.conv.bias is None


def test_initial_weights_are_kaiming_normal_with_zero_biases():
    torch.manual_seed(0)
    model = ResUNet3d(ResUNetConfig.from_channels(1, 2, (32, 64), bias=True))
    weight = model.encoder[1].blocks[0].conv2.conv.weight
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 27)) ** 0.5, rel=0.01)
    assert not model.encoder[1].blocks[0].conv2.conv.bias.any()
    residuals = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert len(residuals) == 6
    assert all(not block.conv2.norm.weight.any() and block.conv1.norm.weight.all() for block in residuals)


FEATURES = (32, 64, 128, 256, 320, 320)


def test_parameter_count_equals_nnunet_plain():
    with torch.device("meta"):
        model = UNet3d(UNetConfig.from_channels(1, 3, FEATURES, bias=True, deep_supervision=True))
    unused_head = 320 * 3 + 3  # nnU-Net keeps the deepest head, whose weight in the loss is zero
    assert sum(p.numel() for p in model.parameters()) + unused_head == 31_196_399


def test_parameter_count_equals_nnunet_residual_encoder():
    with torch.device("meta"):
        config = ResUNetConfig.from_channels(
            1,
            3,
            FEATURES,
            num_blocks=(1, 3, 4, 6, 6, 6),
            decoder_block="basic",
            decoder_num_blocks=1,
            stem_channels=32,
            bias=True,
        )
        model = ResUNet3d(config)
    other_heads = sum(3 * width + 3 for width in FEATURES[1:5])
    assert sum(p.numel() for p in model.parameters()) + other_heads == 102_350_575


def test_deep_supervision_weights_equal_nnunet():
    assert supervision_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))
    assert supervision_weights(3) == pytest.approx((2 / 3, 1 / 3))
    assert supervision_weights(2) == pytest.approx((2 / 3, 1 / 3))
    assert supervision_weights(1) == (1.0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_deep_supervision_affects_only_the_loss(dims):
    plain = tiny(dims, channels=(4, 6, 8, 8), norm="layer")
    deep = tiny(dims, channels=(4, 6, 8, 8), norm="layer", deep_supervision=True)
    assert not any(key.startswith("aux") for key in plain.state_dict())
    assert len(deep.aux_heads) == 1
    deep.load_state_dict(plain.state_dict(), strict=False)
    image = image_of(dims)
    assert torch.equal(deep(image), plain(image))
    label = torch.randint(0, 2, (2, 1, *SIZES[dims]))
    seen = []

    def criterion(logits: Tensor, label: Tensor) -> Tensor:
        seen.append((tuple(logits.shape), tuple(label.shape)))
        return cross_entropy(logits, label)

    deep.criterion = criterion
    losses = deep.losses(image, label)
    assert list(losses) == ["loss"]
    coarse = tuple(-(-n // 8) * 4 for n in SIZES[dims])  # half of the size, padded to a multiple of 8
    assert seen == [((2, 2, *SIZES[dims]), (2, 1, *SIZES[dims])), ((2, 2, *coarse), (2, 1, *coarse))]
    losses["loss"].backward()
    assert all(p.grad is not None for p in deep.parameters())


def test_deep_supervision_loss_is_the_weighted_sum():
    model = tiny(2, channels=(4, 6, 8), deep_supervision=True)
    values = iter([torch.tensor(3.0), torch.tensor(6.0)])
    model.criterion = lambda logits, label: next(values)
    label = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    assert model.losses(torch.randn(1, 2, 8, 8), label)["loss"].item() == pytest.approx(3 * 2 / 3 + 6 / 3)


@pytest.mark.parametrize("factor", [(2, 2), (1, 4), (3, 2)])
def test_label_is_downsampled_by_nearest_exact(factor):
    label = torch.randint(0, 9, (2, 1, 12, 8))
    size = tuple(n // f for n, f in zip((12, 8), factor, strict=True))
    wanted = F.interpolate(label.float(), size, mode="nearest-exact").long()
    assert torch.equal(shrink_label(label, factor, size), wanted)


def test_criterion_is_not_part_of_the_model():
    model = tiny(2)
    keys = set(model.state_dict())
    model.criterion = nn.CrossEntropyLoss(weight=torch.ones(2))
    assert set(model.state_dict()) == keys
    assert isinstance(model.criterion, nn.CrossEntropyLoss)
    assert tiny(2).criterion is None
    model.criterion = None
    with pytest.raises(ModelError, match="criterion"):
        model.losses(image_of(2), torch.zeros(2, 1, 5, 6, dtype=torch.long))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(2, 5, 6), ["image shape", "found (2, 5, 6)", "expected (n c x y)"]),
        (torch.zeros(1, 3, 5, 6), ["image channels", "found 3", "expected 2", "in_channels=3"]),
        (torch.zeros(1, 2, 0, 6), ["empty", "found (1, 2, 0, 6)"]),
        (torch.zeros(1, 2, 5, 6, dtype=torch.int16), ["found torch.int16", "image.float()"]),
        (torch.zeros(1, 2, 2, 1), ["single value", "found (2, 1)", "expected more than (2, 2)"]),
    ],
)
def test_invalid_images_raise(image, words):
    with pytest.raises(ModelError) as caught:
        tiny(2)(image)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("norm", "fits"), [("instance", False), ("batch", False), ("layer", True), ("none", True)]
)
def test_single_voxel_at_the_lowest_stage_raises_for_norms_with_statistics(norm, fits):
    model = tiny(2, norm=norm)
    image = torch.randn(1, 2, 2, 2)
    if fits:
        assert model(image).shape == (1, 2, 2, 2)
    else:
        with pytest.raises(ModelError, match=f"{norm} norm would see a single value"):
            model(image)
    assert tiny(2, norm="batch").eval()(image).shape == (1, 2, 2, 2)
    assert tiny(2, norm="batch")(image.repeat(2, 1, 1, 1)).shape == (2, 2, 2, 2)


def test_group_norm_of_single_channels_needs_more_than_one_voxel():
    image = torch.randn(1, 2, 2, 2)
    with pytest.raises(ModelError, match="single value"):
        tiny(2, norm="group")(image)
    assert tiny(2, norm="group", channels=(4, 64))(image).isfinite().all()


def test_invalid_labels_raise():
    model = tiny(2)
    model.criterion = cross_entropy
    with pytest.raises(ModelError, match=r"label shape: found \(2, 5, 6\), expected \(2, 1, 5, 6\)"):
        model.losses(image_of(2), torch.zeros(2, 5, 6, dtype=torch.long))


def test_per_axis_lists_must_have_one_entry_per_axis():
    config = UNetConfig.from_channels(1, 2, (4, 8), strides=[1, (1, 2, 2)])
    assert UNet3d(config).divisor == (1, 2, 2)
    with pytest.raises(ConfigError, match=r"stride: found \[1, 2, 2\], expected one number or 2"):
        UNet2d(config)


def test_resunet_is_a_unet_of_residual_blocks():
    model = ResUNet2d(ResUNetConfig.from_channels(1, 2, (4, 8)))
    assert sum(isinstance(m, ResidualBlock) for m in model.modules()) == 6
