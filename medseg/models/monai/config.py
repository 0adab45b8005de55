"""Options of MONAI's ``UNet`` and ``AttentionUnet``, and their names in the catalog. Free of torch and MONAI.

Both networks differ from `UNetOptions` in ways that no option covers: transposed convolutions whose kernel is larger
than their stride, followed by norm and activation; a first stage with a stride; residual sums without activation;
gates with batch norm. They are provided so that weights trained with MONAI can be used and trained further.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from medseg.models.catalog import ModelOptions, register_2d_and_3d
from medseg.models.unet.stage import Kernel, PerAxis, Probability, Strides, per_axis

MonaiAct = Literal["prelu", "relu", "leakyrelu", "gelu", "swish"]
MonaiNorm = Literal["instance", "batch", "none"]


def _each_once(order: str) -> str:
    if len(set(order)) < len(order):
        raise ValueError("expected each of the letters N, D and A at most once")
    return order


Ordering = Annotated[str, Field(pattern="^[NDA]{1,3}$"), AfterValidator(_each_once)]


class _MonaiFields(ModelOptions):
    """The options that both networks share.

    Attributes:
        channels: Channels of each level, from the full resolution down.
        strides: Stride of the step to each next level, a number or one per axis; one number for all steps.
        kernel_size: Kernel size of the convolutions.
        up_kernel_size: Kernel size of the transposed convolutions.
        dropout: Dropout probability.
    """

    channels: tuple[PositiveInt, ...] = Field((16, 32, 64, 128, 256), min_length=2)
    strides: Strides = 2
    kernel_size: Kernel = 3
    up_kernel_size: Kernel = 3
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _one_stride_a_step(self) -> Self:
        steps = len(self.channels) - 1
        if isinstance(self.strides, tuple) and len(self.strides) != steps:
            raise ValueError(
                f"strides has {len(self.strides)} entries, expected {steps}: one less than channels"
            )
        return self

    def steps(self) -> tuple[PerAxis, ...]:
        """Return the strides, one entry per step down."""
        return self.strides if isinstance(self.strides, tuple) else (self.strides,) * (len(self.channels) - 1)

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Return one sentence per per-axis list that does not have `spatial_dims` entries."""
        named = [("kernel_size", self.kernel_size), ("up_kernel_size", self.up_kernel_size)]
        named += [(f"strides.{i}", stride) for i, stride in enumerate(self.steps())]
        return [
            f"{key}: found {list(value)}, expected one number or {spatial_dims}, one per axis."
            for key, value in named
            if isinstance(value, tuple) and len(value) != spatial_dims
        ]

    def divisor(self, spatial_dims: int) -> tuple[int, ...]:
        """Return the divisor of the sizes of the network's input, one number per axis."""
        result = [1] * spatial_dims
        for stride in self.steps():
            result = [n * s for n, s in zip(result, per_axis(stride, spatial_dims), strict=True)]
        return tuple(result)


@register_2d_and_3d(
    "monai_unet",
    summary="MONAI's {} UNet, for its weights",
    reference="Kerfoot et al. 2018, Left-Ventricle Quantification Using Residual U-Net",
    parameters=(1_625_161, 4_806_481),
)
class MonaiUNetOptions(_MonaiFields):
    """The options of MONAI's residual ``UNet``.

    Attributes:
        num_res_units: Convolutions of each residual unit; 0 for plain convolutions without residual units.
        act: Activation.
        negative_slope: Negative slope of ``leakyrelu``.
        norm: Kind of norm.
        affine: Whether the norm has scale and shift; None follows MONAI: batch norm has them, instance norm does not.
        bias: Whether the convolutions have a bias.
        adn_ordering: Order of activation (A), dropout (D) and norm (N) after a convolution.
    """

    builder: ClassVar[str] = "medseg.models.monai.network:build_unet"

    num_res_units: NonNegativeInt = 2
    act: MonaiAct = "prelu"
    negative_slope: Annotated[float, Field(ge=0.0)] = 0.01
    norm: MonaiNorm = "instance"
    affine: bool | None = None
    bias: bool = True
    adn_ordering: Ordering = "NDA"


@register_2d_and_3d(
    "monai_attention_unet",
    summary="MONAI's {} AttentionUnet, for its weights",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    parameters=(1_987_434, 5_909_130),
)
class MonaiAttentionUNetOptions(_MonaiFields):
    """The options of MONAI's ``AttentionUnet``: batch norm throughout, and gates with batch norm on every level."""

    builder: ClassVar[str] = "medseg.models.monai.network:build_attention_unet"
