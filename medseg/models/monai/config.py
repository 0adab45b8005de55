"""Options of MONAI's ``UNet`` and ``AttentionUnet``, and their names in the catalog. Free of torch and MONAI.

Both differ from `UNetOptions` in what no option says: transposed convolutions whose kernel is larger than their
stride, with norm and activation behind them; a first stage that strides; residual sums without activation; gates with
batch norm. They are here so that weights trained with MONAI can be used and trained further.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from medseg.models.catalog import ModelOptions, ModelSize, register
from medseg.models.unet.stage import Kernel, PerAxis, Probability, Strides, per_axis

MonaiAct = Literal["prelu", "relu", "leakyrelu", "gelu", "swish"]
MonaiNorm = Literal["instance", "batch", "none"]


def _each_once(order: str) -> str:
    if len(set(order)) < len(order):
        raise ValueError("expected each of the letters N, D and A at most once")
    return order


Ordering = Annotated[str, Field(pattern="^[NDA]{1,3}$"), AfterValidator(_each_once)]


class _MonaiFields(ModelOptions):
    """What both networks have.

    Args:
        channels: width of each level, from the full resolution down.
        strides: of the step to each next level, a number or one per axis; one number for all.
        kernel_size: of the convolutions. up_kernel_size: of the transposed ones.
        dropout: probability.
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
        """The strides, one entry per step down."""
        return self.strides if isinstance(self.strides, tuple) else (self.strides,) * (len(self.channels) - 1)

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Sentences about per-axis lists that do not have `spatial_dims` entries."""
        named = [("kernel_size", self.kernel_size), ("up_kernel_size", self.up_kernel_size)]
        named += [(f"strides.{i}", stride) for i, stride in enumerate(self.steps())]
        return [
            f"{key}: found {list(value)}, expected one number or {spatial_dims}, one per axis."
            for key, value in named
            if isinstance(value, tuple) and len(value) != spatial_dims
        ]

    def divisor(self, spatial_dims: int) -> tuple[int, ...]:
        """Sizes that the network takes are multiples of it, per axis."""
        result = [1] * spatial_dims
        for stride in self.steps():
            result = [n * s for n, s in zip(result, per_axis(stride, spatial_dims), strict=True)]
        return tuple(result)


@register(
    "monai_unet_3d",
    spatial_dims=3,
    summary="MONAI's 3D UNet, for its weights",
    reference="Kerfoot et al. 2018, Left-Ventricle Quantification Using Residual U-Net",
    size=ModelSize(4_806_481, in_channels=1, num_classes=2),
)
@register(
    "monai_unet_2d",
    spatial_dims=2,
    summary="MONAI's 2D UNet, for its weights",
    reference="Kerfoot et al. 2018, Left-Ventricle Quantification Using Residual U-Net",
    size=ModelSize(1_625_161, in_channels=1, num_classes=2),
)
class MonaiUNetOptions(_MonaiFields):
    """MONAI's residual ``UNet``.

    Args:
        num_res_units: convolutions of each residual unit; 0 for none, and plain convolutions.
        act: activation.
        negative_slope: of ``leakyrelu``.
        norm: kind of norm.
        affine: whether the norm scales and shifts; None as in MONAI: batch norm does, instance norm does not.
        bias: of the convolutions.
        adn_ordering: order of activation, dropout and norm behind a convolution.
    """

    builder: ClassVar[str] = "medseg.models.monai.network:build_unet"

    num_res_units: NonNegativeInt = 2
    act: MonaiAct = "prelu"
    negative_slope: Annotated[float, Field(ge=0.0)] = 0.01
    norm: MonaiNorm = "instance"
    affine: bool | None = None
    bias: bool = True
    adn_ordering: Ordering = "NDA"


@register(
    "monai_attention_unet_3d",
    spatial_dims=3,
    summary="MONAI's 3D AttentionUnet, for its weights",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    size=ModelSize(5_909_130, in_channels=1, num_classes=2),
)
@register(
    "monai_attention_unet_2d",
    spatial_dims=2,
    summary="MONAI's 2D AttentionUnet, for its weights",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    size=ModelSize(1_987_434, in_channels=1, num_classes=2),
)
class MonaiAttentionUNetOptions(_MonaiFields):
    """MONAI's ``AttentionUnet``: batch norm throughout, gates with batch norm, on every level."""

    builder: ClassVar[str] = "medseg.models.monai.network:build_attention_unet"
