"""The arguments of four networks of MONAI, and their translation to models of medseg.

Each class has the argument names and defaults of MONAI's constructor, so that arguments can be copied from a training
script. Arguments without an equivalent in medseg are refused with an explanation. Dropout does not affect prediction,
so it is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from medseg.config import Config
from medseg.errors import ConfigError
from medseg.interop.state_dicts import from_basic_unet, from_dynunet
from medseg.models.catalog import parse_options
from medseg.models.layers.layer_names import Act, Norm
from medseg.models.layers.norms import num_groups
from medseg.models.monai.config import Ordering
from medseg.models.unet.config import UNetOptions
from medseg.models.unet.network_config import UNetConfig
from medseg.models.unet.stage import Kernel, Probability, Stride, per_axis

Layer = str | tuple[str, dict[str, bool | int | float]]
"""A layer as MONAI describes it: a name, or a name and its arguments."""

_ACTS: dict[str, Act] = {"relu": "relu", "leakyrelu": "leaky_relu", "gelu": "gelu", "swish": "silu"}
_EPS = 1e-5


@dataclass(frozen=True)
class Translation:
    """A network of MONAI as a model of medseg's catalog.

    Attributes:
        model: Registry name and options.
        convert: Function from MONAI's state dict to the model's.
    """

    model: dict[str, Any]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Arguments(Config):
    """The arguments that all networks share.

    Attributes:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Number of classes, background included.
    """

    spatial_dims: Literal[2, 3]
    in_channels: PositiveInt
    out_channels: PositiveInt

    def translated(self, where: str) -> Translation:
        """Return the same network as a model of medseg.

        Args:
            where: Name of the file, for messages.

        Returns:
            The model and the conversion of its weights.

        Raises:
            ConfigError: An argument, named in the message, has no equivalent in medseg.
        """
        raise NotImplementedError


class DynUNetArguments(Arguments):
    """Arguments of ``monai.networks.nets.DynUNet``."""

    kernel_size: tuple[Kernel, ...]
    strides: tuple[Stride, ...]
    upsample_kernel_size: tuple[Stride, ...]
    filters: tuple[PositiveInt, ...] | None = None
    dropout: Probability | None = None
    norm_name: Layer = ("INSTANCE", {"affine": True})
    act_name: Layer = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
    deep_supervision: bool = False
    deep_supr_num: PositiveInt = 1
    res_block: bool = False
    trans_bias: bool = False

    def translated(self, where: str) -> Translation:
        """Return a U-Net with plain decoder blocks; see `Arguments.translated`."""
        self._check(where)
        most = 320 if self.spatial_dims == 3 else 512
        widths = (self.filters or tuple(min(2 ** (5 + i), most) for i in range(len(self.strides))))[
            : len(self.strides)
        ]
        act, slope = _act(self.act_name, f"{where}: network.act_name")
        decoder = [
            {"channels": widths[i], "kernel_size": self.kernel_size[i + 1]}
            for i in reversed(range(len(widths) - 1))
        ]
        options = {
            "channels": widths,
            "num_blocks": 1 if self.res_block else 2,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "decoder_stages": decoder,
            "block": "res" if self.res_block else "basic",
            "decoder_block": "basic",
            "residual_downsample": "conv",
            "norm": _norm(self.norm_name, widths, f"{where}: network.norm_name"),
            "act": act,
            "negative_slope": slope,
            "bias": self.trans_bias,
        }
        return _unet(self, options, from_dynunet, where)

    def _check(self, where: str) -> None:
        stages = len(self.strides)
        if stages < 3 or len(self.kernel_size) != stages or len(self.upsample_kernel_size) != stages - 1:
            found = f"{len(self.kernel_size)}, {stages} and {len(self.upsample_kernel_size)}"
            raise ConfigError(
                f"{where}: network.kernel_size, strides and upsample_kernel_size: found {found} entries, expected "
                "n, n and n - 1 with n at least 3. Copy them from the training script."
            )
        if self.filters is not None and len(self.filters) < stages:
            raise ConfigError(
                f"{where}: network.filters: found {len(self.filters)} entries, expected at least {stages}. "
                "Copy them from the training script."
            )
        dims = self.spatial_dims
        for i, (kernel, stride) in enumerate(zip(self.upsample_kernel_size, self.strides[1:], strict=True)):
            if per_axis(kernel, dims) != per_axis(stride, dims):
                raise ConfigError(
                    f"{where}: network.upsample_kernel_size.{i}: found {kernel}, expected the stride {stride}: "
                    "other transposed convolutions have no equivalent in medseg. Retrain the network with medseg."
                )
        if set(per_axis(self.strides[0], dims)) != {1}:
            raise ConfigError(
                f"{where}: network.strides.0: found {self.strides[0]}, expected 1: the logits would be on a coarser "
                "grid than the image. Retrain the network with medseg."
            )


class BasicUNetArguments(Arguments):
    """Arguments of ``monai.networks.nets.BasicUNet``."""

    features: Annotated[tuple[PositiveInt, ...], Field(min_length=6, max_length=6)] = (
        32,
        32,
        64,
        128,
        256,
        32,
    )
    act: Layer = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})
    norm: Layer = ("instance", {"affine": True})
    bias: bool = True
    dropout: Probability = 0.0
    upsample: Literal["deconv"] = "deconv"

    def translated(self, where: str) -> Translation:
        """Return a U-Net of five stages with max pooling; see `Arguments.translated`."""
        _, *middle, last = self.features
        act, slope = _act(self.act, f"{where}: network.act")
        decoder = (*reversed(middle[:-1]), last)
        halves = [width // 2 for width in reversed(middle[1:])]
        options = {
            "channels": self.features[:5],
            "downsample": "maxpool",
            "act": act,
            "negative_slope": slope,
            "norm": _norm(self.norm, self.features, f"{where}: network.norm"),
            "bias": True,
            "upsample_channels": [*halves, middle[0]],
            "decoder_stages": [{"channels": width} for width in decoder],
        }
        return _unet(self, options, from_basic_unet, where)


class UNetArguments(Arguments):
    """Arguments of ``monai.networks.nets.UNet``."""

    channels: tuple[PositiveInt, ...]
    strides: tuple[Stride, ...]
    kernel_size: Kernel = 3
    up_kernel_size: Kernel = 3
    num_res_units: NonNegativeInt = 0
    act: Layer = "PRELU"
    norm: Layer | None = "INSTANCE"
    dropout: Probability = 0.0
    bias: bool = True
    adn_ordering: Ordering = "NDA"

    def translated(self, where: str) -> Translation:
        """Return ``monai_unet_2d`` or ``monai_unet_3d``; see `Arguments.translated`."""
        options = _same(self, ("channels", "strides", "kernel_size", "up_kernel_size"))
        options |= _same(self, ("num_res_units", "bias", "adn_ordering"))
        name, more = _split(self.act)
        options["act"] = name
        if name == "leakyrelu":
            options["negative_slope"] = more.pop("negative_slope", 0.01)
        _refuse_more(
            more, {"inplace": None, "init": None, "num_parameters": 1}, f"{where}: network.act", self.act
        )
        name, more = ("none", {}) if self.norm is None else _split(self.norm)
        options |= {"norm": name, "affine": more.pop("affine", None)}
        _refuse_more(more, {"eps": _EPS, "momentum": None}, f"{where}: network.norm", self.norm)
        return _wrapped(self, "monai_unet", options, where)


class AttentionUnetArguments(Arguments):
    """Arguments of ``monai.networks.nets.AttentionUnet``."""

    channels: tuple[PositiveInt, ...]
    strides: tuple[Stride, ...]
    kernel_size: Kernel = 3
    up_kernel_size: Kernel = 3
    dropout: Probability = 0.0

    def translated(self, where: str) -> Translation:
        """Return ``monai_attention_unet_2d`` or ``monai_attention_unet_3d``; see `Arguments.translated`."""
        options = _same(self, ("channels", "strides", "kernel_size", "up_kernel_size"))
        return _wrapped(self, "monai_attention_unet", options, where)


NETWORKS: dict[str, tuple[type[Arguments], str]] = {
    "dynunet": (DynUNetArguments, "DynUNet"),
    "unet": (UNetArguments, "UNet"),
    "attentionunet": (AttentionUnetArguments, "AttentionUnet"),
    "basicunet": (BasicUNetArguments, "BasicUNet"),
}
"""Arguments class and name of MONAI's class, by the name on the command line."""


def _unet(
    arguments: Arguments,
    options: dict[str, Any],
    convert: Callable[[Mapping[str, Tensor], UNetConfig], dict[str, Tensor]],
    where: str,
) -> Translation:
    resolved = UNetOptions.parse(options, source=f"{where}: network")
    config = UNetConfig(
        in_channels=arguments.in_channels, out_channels=arguments.out_channels, **dict(resolved)
    )
    model = {"name": f"unet_{arguments.spatial_dims}d", **resolved.to_plain()}
    return Translation(model, lambda state: convert(state, config))


def _wrapped(arguments: Arguments, name: str, options: dict[str, Any], where: str) -> Translation:
    def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"network.{key}": tensor for key, tensor in state.items()}

    name = f"{name}_{arguments.spatial_dims}d"
    resolved = parse_options(name, options, source=f"{where}: network")
    return Translation({"name": name, **resolved.to_plain()}, convert)


def _same(arguments: Arguments, keys: Sequence[str]) -> dict[str, Any]:
    plain = arguments.to_plain()
    return {key: plain[key] for key in keys}


def _norm(layer: Layer, widths: Sequence[int], where: str) -> Norm:
    """Return the norm of a U-Net that computes the same numbers."""
    name, more = _split(layer)
    if name == "group":
        groups = more.pop("num_groups", None)
        ours = sorted({num_groups(width) for width in widths})
        if [groups] != ours:
            raise ConfigError(
                f"{where}: found {groups} groups, expected {' and '.join(map(str, ours))}: medseg's group norm uses the "
                "largest divisor of the channels up to 32. Retrain the network with medseg."
            )
    elif name not in ("instance", "batch"):
        raise ConfigError(
            f"{where}: found {name!r}, expected instance, batch or group. Retrain it with medseg."
        )
    affine = more.pop("affine", name != "instance")
    _refuse_more(more, {"eps": _EPS, "momentum": None}, where, layer)
    if affine is not True:
        raise ConfigError(
            f"{where}: found a norm without scale and shift ({layer!r}), expected affine: true. "
            "If the network was trained without them, retrain it with medseg."
        )
    return name  # type: ignore[return-value]


def _act(layer: Layer, where: str) -> tuple[Act, float]:
    """Return the activation of a U-Net that computes the same numbers, and its slope."""
    name, more = _split(layer)
    if name not in _ACTS:
        raise ConfigError(
            f"{where}: found {name!r}, expected one of {', '.join(_ACTS)}: other activations have no equivalent in "
            "medseg's U-Net. Retrain the network with medseg."
        )
    slope = more.pop("negative_slope", 0.01) if name == "leakyrelu" else 0.01
    _refuse_more(more, {"inplace": None}, where, layer)
    return _ACTS[name], float(slope)


def _split(layer: Layer) -> tuple[str, dict[str, Any]]:
    """Return the name in lower case, and the arguments."""
    if isinstance(layer, str):
        return layer.lower(), {}
    return layer[0].lower(), dict(layer[1])


def _refuse_more(found: Mapping[str, Any], known: Mapping[str, Any], where: str, layer: object) -> None:
    """Raise unless all arguments are `known` and, where the known value is not None, have that value."""
    for key, value in found.items():
        if key not in known or (known[key] is not None and value != known[key]):
            expected = f"{known[key]}" if key in known else "no such argument"
            raise ConfigError(
                f"{where}: {key}: found {value!r} in {layer!r}, expected {expected}: it has no equivalent in medseg. "
                "Retrain the network with medseg."
            )
