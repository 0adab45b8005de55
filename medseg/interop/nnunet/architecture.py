"""The ``architecture`` of nnU-Net's plans, read strictly, and the same network as a model of medseg. Free of torch.

Class names are only looked up in tables; nothing is imported by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PositiveInt, field_validator, model_validator

from medseg.config import Config

MAX_STAGES = 16
NETWORKS = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "plain",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "residual",
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "residual",
}
ACTIVATIONS = {
    "torch.nn.LeakyReLU": "leaky_relu",
    "torch.nn.modules.activation.LeakyReLU": "leaky_relu",
    "torch.nn.ReLU": "relu",
    "torch.nn.modules.activation.ReLU": "relu",
}
_CONVOLUTIONS = {f"torch.nn.modules.conv.Conv{d}d": d for d in (2, 3)} | {
    f"torch.nn.Conv{d}d": d for d in (2, 3)
}
_NORMS = {
    f"torch.nn.{module}{kind}Norm{d}d": (norm, d)
    for kind, norm, place in (("Instance", "instance", "instancenorm"), ("Batch", "batch", "batchnorm"))
    for d in (2, 3)
    for module in ("", f"modules.{place}.")
}

Axes = tuple[PositiveInt, ...]
PerStage = PositiveInt | tuple[PositiveInt, ...]
AxesPerStage = PositiveInt | tuple[PositiveInt | Axes, ...]


def one_of(known: Sequence[str], what: str) -> AfterValidator:
    """Return a validator that accepts only known words; its message lists them."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"unknown {what}, expected one of {', '.join(known)}")
        return value

    return AfterValidator(check)


class Foreign(Config):
    """A part of a file of nnU-Net; keys that prediction does not need are ignored."""

    model_config = ConfigDict(extra="ignore")


class _NormArguments(Config):
    eps: float = 1e-5
    affine: Literal[True] = True

    @field_validator("eps")
    @classmethod
    def _usual(cls, value: float) -> float:
        if value != 1e-5:
            raise ValueError("expected 1e-5, the value of nnU-Net")
        return value


class _ActivationArguments(Config):
    inplace: bool = False
    negative_slope: float = 0.01


class NetworkSettings(Config):
    """The layers of a network (``arch_kwargs``); per-axis numbers are in tensor order."""

    n_stages: Annotated[int, Field(ge=2, le=MAX_STAGES)]
    features_per_stage: PerStage
    conv_op: Annotated[str, one_of(tuple(_CONVOLUTIONS), "convolution")]
    kernel_sizes: AxesPerStage
    strides: AxesPerStage
    n_conv_per_stage: PerStage | None = None
    n_blocks_per_stage: PerStage | None = None
    n_conv_per_stage_decoder: PerStage
    conv_bias: bool = False
    norm_op: Annotated[str, one_of(tuple(_NORMS), "norm")]
    norm_op_kwargs: _NormArguments
    dropout_op: None = None
    dropout_op_kwargs: Any = None
    nonlin: Annotated[str, one_of(tuple(ACTIVATIONS), "activation")]
    nonlin_kwargs: _ActivationArguments | None = None
    nonlin_first: Literal[False] = False
    deep_supervision: bool = False

    @model_validator(mode="after")
    def _agree(self) -> NetworkSettings:
        if _NORMS[self.norm_op][1] != self.dims:
            raise ValueError(f"norm_op {self.norm_op} does not fit conv_op {self.conv_op}")
        for key in (
            "features_per_stage",
            "kernel_sizes",
            "strides",
            "n_conv_per_stage",
            "n_blocks_per_stage",
        ):
            values = getattr(self, key)
            if isinstance(values, tuple) and len(values) != self.n_stages:
                raise ValueError(f"{key} has {len(values)} entries, expected {self.n_stages} (n_stages)")
        for key in ("kernel_sizes", "strides"):
            for stage in self.per_axis(getattr(self, key)):
                if len(stage) != self.dims:
                    raise ValueError(
                        f"{key}: found {list(stage)}, expected {self.dims} numbers, one per axis"
                    )
        first = self.per_axis(self.strides)[0]
        if any(step != 1 for step in first):
            raise ValueError(
                f"strides: found {list(first)} for the first stage, expected 1 along every axis, because medseg keeps the "
                "size of the image there"
            )
        return self

    @property
    def dims(self) -> int:
        """The number of spatial axes, 2 or 3."""
        return _CONVOLUTIONS[self.conv_op]

    @property
    def norm(self) -> str:
        """The kind of norm, ``instance`` or ``batch``."""
        return _NORMS[self.norm_op][0]

    def per_stage(self, values: PerStage) -> tuple[int, ...]:
        """Return one number per stage."""
        return values if isinstance(values, tuple) else (values,) * self.n_stages

    def per_axis(self, values: AxesPerStage) -> tuple[Axes, ...]:
        """Return one tuple per stage, with one number per axis."""
        stages = values if isinstance(values, tuple) else (values,) * self.n_stages
        return tuple(s if isinstance(s, tuple) else (s,) * self.dims for s in stages)


class Architecture(Foreign):
    """The class and the layers of a network."""

    network_class_name: Annotated[str, one_of(tuple(NETWORKS), "network")]
    arch_kwargs: NetworkSettings

    @model_validator(mode="after")
    def _counts(self) -> Architecture:
        wanted = "n_conv_per_stage" if self.kind == "plain" else "n_blocks_per_stage"
        if getattr(self.arch_kwargs, wanted) is None:
            raise ValueError(f"arch_kwargs: found no {wanted}, expected a number, or one per stage")
        return self

    @property
    def kind(self) -> str:
        """The kind of network, ``plain`` or ``residual``."""
        return NETWORKS[self.network_class_name]

    def model(self, order: Sequence[int]) -> dict[str, Any]:
        """Return the registry name and options of the same network in medseg.

        Args:
            order: Axis ``order[i]`` of nnU-Net's network is axis i of medseg's.

        Returns:
            The options, with the name under ``name``.
        """
        layers = self.arch_kwargs
        blocks = layers.n_conv_per_stage if self.kind == "plain" else layers.n_blocks_per_stage
        assert blocks is not None  # checked above
        stages = zip(
            layers.per_stage(layers.features_per_stage),
            layers.per_stage(blocks),
            layers.per_axis(layers.kernel_sizes),
            layers.per_axis(layers.strides),
            strict=True,
        )
        options: dict[str, Any] = {
            "encoder_stages": [
                {
                    "channels": channels,
                    "num_blocks": count,
                    "kernel_size": [kernel[a] for a in order],
                    "stride": [stride[a] for a in order],
                }
                for channels, count, kernel, stride in stages
            ],
            "decoder_num_blocks": layers.n_conv_per_stage_decoder,
            "norm": layers.norm,
            "act": ACTIVATIONS[layers.nonlin],
            "bias": layers.conv_bias,
        }
        if layers.nonlin_kwargs is not None:
            options["negative_slope"] = layers.nonlin_kwargs.negative_slope
        if self.kind == "residual":
            options |= {"block": "res", "decoder_block": "basic"}
            options["stem_channels"] = layers.per_stage(layers.features_per_stage)[0]
        return {"name": f"{'res' if self.kind == 'residual' else ''}unet_{layers.dims}d", **options}
