"""Conversion of U-Net weights of other packages: pure functions from a state dict and a config to medseg's state dict.

None of the packages is needed. Every tensor of the medseg model must be found with its shape, and every tensor of the
source must be used or be a known duplicate, so weights of another architecture are refused, not partly loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medseg.errors import ModelError, error_message
from medseg.models.unet.network import UNet
from medseg.models.unet.network_config import UNetConfig
from medseg.models.unet.stage import per_axis

State = Mapping[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

_LAYER = r"(conv|norm)\.(\w+)"


def from_plain_conv_unet(state: State, config: UNetConfig) -> dict[str, Tensor]:
    """Convert weights of nnU-Net's ``PlainConvUNet`` (dynamic-network-architectures 0.4).

    Args:
        state: State dict of the network. Heads of deep supervision are dropped if `config` has none.
        config: The same network as a plain U-Net with ``bias=True``.

    Returns:
        The state dict of medseg's U-Net.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape.
    """
    encoder = (rf"encoder\.(\d+)\.blocks\.(\d+)\.{_LAYER}", r"encoder.stages.\1.0.convs.\2.\3.\4")
    return _convert("PlainConvUNet", state, config, [encoder, *_nnunet_decoder(config)], _nnunet_duplicate)


def from_residual_encoder_unet(state: State, config: UNetConfig) -> dict[str, Tensor]:
    """Convert weights of nnU-Net's ``ResidualEncoderUNet`` (dynamic-network-architectures 0.4).

    Args:
        state: State dict of the network.
        config: The same network, with ``block="res"``, ``decoder_block="basic"``, ``bias=True``, and ``stem_channels``
            equal to the channels of the first stage.

    Returns:
        The state dict of medseg's U-Net.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape.
    """

    def shortcut(match: re.Match[str]) -> str:
        stage, block, layer = match.groups()
        stride = config.encoder_stages[int(stage)].stride
        pooled = block == "0" and any(step != 1 for step in per_axis(stride, 3))
        return f"encoder.stages.{stage}.blocks.{block}.skip.{int(pooled)}.{layer}"

    rules: Rules = [
        (rf"stem\.{_LAYER}", r"encoder.stem.convs.0.\1.\2"),
        (rf"encoder\.(\d+)\.blocks\.(\d+)\.(conv[12])\.{_LAYER}", r"encoder.stages.\1.blocks.\2.\3.\4.\5"),
        (r"encoder\.(\d+)\.blocks\.(\d+)\.shortcut\.(.+)", shortcut),
        *_nnunet_decoder(config),
    ]
    return _convert("ResidualEncoderUNet", state, config, rules, _nnunet_duplicate)


def from_dynunet(state: State, config: UNetConfig) -> dict[str, Tensor]:
    """Convert weights of MONAI's ``DynUNet``, plain or with ``res_block=True``.

    Biases that DynUNet omits become zero.

    Args:
        state: State dict of the network.
        config: The same network, with two ``basic`` blocks per stage, or with one ``res`` block per stage,
            ``decoder_block="basic"``, two blocks per decoder stage and ``residual_downsample="conv"``. A decoder stage of
            DynUNet has the kernel size of the next coarser stage, so `decoder_stages` must be given if kernel sizes
            differ.

    Returns:
        The state dict of medseg's U-Net.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape, or the padding differs.
    """
    _require_dynunet_padding(config)
    last = len(config.encoder_stages) - 1

    def stage(index: str) -> str:
        i = int(index)
        return "input_block" if i == 0 else "bottleneck" if i == last else f"downsamples.{i - 1}"

    def layer(kind: str, number: int, rest: str) -> str:
        return f"conv{number}.conv.{rest}" if kind == "conv" else f"norm{number}.{rest}"

    rules: Rules = [
        (
            rf"encoder\.(\d+)\.blocks\.(\d+)\.{_LAYER}",
            lambda m: f"{stage(m[1])}.{layer(m[3], int(m[2]) + 1, m[4])}",
        ),
        (
            rf"encoder\.(\d+)\.blocks\.0\.conv([12])\.{_LAYER}",
            lambda m: f"{stage(m[1])}.{layer(m[3], int(m[2]), m[4])}",
        ),
        (
            rf"encoder\.(\d+)\.blocks\.0\.shortcut\.{_LAYER}",
            lambda m: f"{stage(m[1])}.{layer(m[2], 3, m[3])}",
        ),
        (r"decoder\.(\d+)\.up\.conv\.(\w+)", r"upsamples.\1.transp_conv.conv.\2"),
        (
            rf"decoder\.(\d+)\.stage\.blocks\.(\d+)\.{_LAYER}",
            lambda m: f"upsamples.{m[1]}.conv_block.{layer(m[3], int(m[2]) + 1, m[4])}",
        ),
        (r"head\.(\w+)", r"output_block.conv.conv.\1"),
        (r"aux_heads\.(\d+)\.(\w+)", r"deep_supervision_heads.\1.conv.conv.\2"),
    ]

    def duplicate(key: str) -> bool:
        return key.startswith(("skip_layers.", "deep_supervision_heads."))

    return _convert("DynUNet", state, config, rules, duplicate, zero_bias=True)


def from_basic_unet(state: State, config: UNetConfig) -> dict[str, Tensor]:
    """Convert weights of MONAI's ``BasicUNet`` with ``upsample="deconv"``.

    BasicUNet concatenates the skip before the upsampled map, so the first kernel of each level is reordered.

    Args:
        state: State dict of the network.
        config: The same network, with 5 encoder stages of 2 blocks, ``downsample="maxpool"``, `upsample_channels` of half
            the channels of the coarser level (all of them at the shallowest level), and decoder stages with
            ``features[3]``, ``[2]``, ``[1]`` and ``[5]`` channels.

    Returns:
        The state dict of medseg's U-Net.

    Raises:
        ModelError: A tensor is missing, unexpected, or has another shape.
    """
    found = len(config.encoder_stages)
    if found != 5:
        fix = "Use five encoder stages"
        raise ModelError(
            error_message("BasicUNet", "number of encoder stages", found=found, expected=5, fix=fix)
        )

    def place(kind: str) -> str:
        return "conv" if kind == "conv" else "adn.N"

    def encoder(match: re.Match[str]) -> str:
        stage, block, kind, rest = match.groups()
        top = "conv_0" if stage == "0" else f"down_{stage}.convs"
        return f"{top}.conv_{block}.{place(kind)}.{rest}"

    rules: Rules = [
        (rf"encoder\.(\d+)\.blocks\.(\d+)\.{_LAYER}", encoder),
        (r"decoder\.(\d+)\.up\.conv\.(\w+)", lambda m: f"upcat_{4 - int(m[1])}.upsample.deconv.{m[2]}"),
        (
            rf"decoder\.(\d+)\.stage\.blocks\.(\d+)\.{_LAYER}",
            lambda m: f"upcat_{4 - int(m[1])}.convs.conv_{m[2]}.{place(m[3])}.{m[4]}",
        ),
        (r"head\.(\w+)", r"final_conv.\1"),
    ]
    result = _convert("BasicUNet", state, config, rules, lambda key: False, zero_bias=True)
    for level, skip in enumerate(config.skip_widths()):
        key = f"decoder.{level}.stage.blocks.0.conv.weight"
        result[key] = torch.cat([result[key][:, skip:], result[key][:, :skip]], dim=1)
    return result


def _nnunet_decoder(config: UNetConfig) -> Rules:
    top = config.num_decoder_levels - 1
    return [
        (r"decoder\.(\d+)\.up\.conv\.(\w+)", r"decoder.transpconvs.\1.\2"),
        (rf"decoder\.(\d+)\.stage\.blocks\.(\d+)\.{_LAYER}", r"decoder.stages.\1.convs.\2.\3.\4"),
        (r"head\.(\w+)", rf"decoder.seg_layers.{top}.\1"),
        (r"aux_heads\.(\d+)\.(\w+)", lambda m: f"decoder.seg_layers.{top - 1 - int(m[1])}.{m[2]}"),
    ]


def _nnunet_duplicate(key: str) -> bool:
    return ".all_modules." in key or key.startswith(("decoder.encoder.", "decoder.seg_layers."))


def _require_dynunet_padding(config: UNetConfig) -> None:
    """Raise unless DynUNet's padding, (kernel − stride + 1) // 2, equals medseg's, (kernel − 1) // 2."""
    for i, stage in enumerate(config.encoder_stages):
        pairs = zip(per_axis(stage.kernel_size, 3), per_axis(stage.stride, 3), strict=False)
        if any((k - s + 1) // 2 != (k - 1) // 2 for k, s in pairs):
            what = f"stage {i} pads differently, so its results would differ: kernel and stride"
            found = (stage.kernel_size, stage.stride)
            fix = "Retrain the network with medseg"
            raise ModelError(
                error_message("DynUNet", what, found=found, expected="strides of 1 or 2", fix=fix)
            )


def _convert(
    source: str,
    state: State,
    config: UNetConfig,
    rules: Rules,
    duplicate: Callable[[str], bool],
    *,
    zero_bias: bool = False,
) -> dict[str, Tensor]:
    """Return every tensor of the medseg model, taken from `state` by the first rule that matches its key."""
    result, used = {}, set()
    for key, wanted in _expected(state, config, source).items():
        foreign = _rename(key, rules, source)
        if foreign in state:
            used.add(foreign)
            result[key] = state[foreign]
        elif zero_bias and key.endswith(".bias") and foreign.removesuffix(".bias") + ".weight" in state:
            result[key] = torch.zeros(wanted.shape)
        else:
            fix = f"Check that the config describes the {source} that was saved"
            raise ModelError(
                error_message(source, f"no tensor {foreign!r}, expected for {key!r} of medseg", fix=fix)
            )
        if result[key].shape != wanted.shape:
            found, expected = tuple(result[key].shape), tuple(wanted.shape)
            fix = f"Check channels, kernels and strides of the stage that contains {key!r}"
            raise ModelError(
                error_message(source, f"shape of {foreign!r}", found=found, expected=expected, fix=fix)
            )
    left = sorted(key for key in state if key not in used and not duplicate(key))
    if left:
        what = f"{len(left)} tensors have no place in the config, such as {left[0]!r}"
        fix = f"Check that the config describes the {source} that was saved"
        raise ModelError(error_message(source, what, fix=fix))
    return result


def _expected(state: State, config: UNetConfig, source: str) -> dict[str, Tensor]:
    """Return medseg's state dict, without storage, for the number of axes of the kernels in `state`."""
    dims = {tensor.dim() - 2 for tensor in state.values()} & {2, 3}
    if len(dims) != 1:
        fix = "Give the state dict of a 2D or 3D network"
        raise ModelError(error_message(source, "no convolution kernels of 2 or 3 axes were found", fix=fix))
    with torch.device("meta"):
        return UNet(config, dims.pop()).state_dict()


def _rename(key: str, rules: Rules, source: str) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    fix = "Remove the part of the config that has no equivalent there"
    raise ModelError(error_message(source, f"it has no equivalent of {key!r}", fix=fix))
