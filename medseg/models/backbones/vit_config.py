"""Options of a vision transformer with or without an adapter. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.pretrained.config import PretrainedOptions


class ViTFields(PretrainedOptions):
    """The options of a vision transformer with patches of 16×16 voxels, plain or with a ViT-Adapter.

    Attributes:
        width: Width of the tokens.
        depth: Number of blocks, a multiple of 4. The last block of every three (for a depth up to 12) or six attends
            to the whole image, the others attend within windows.
        attention_heads: Heads of each attention layer.
        attention_window: Edge length of the attention windows, in patches.
        window_padding: How windows that reach beyond the image are completed. ``masked`` attends to the cells of the image
            only; ``zeros``, for weights of ViT-Adapter, adds cells whose keys and values are zero.
        pretrain_size: Edge length in voxels of the images for which the position table is defined; the table is
            interpolated for other sizes.
        drop_path: Rate of stochastic depth in the last block; it increases linearly from 0 in the first.
        adapter: Whether a ViT-Adapter is attached; otherwise the outputs of the four quarters are resized into a
            pyramid.
        deform_heads: Heads of the adapter's deformable attention.
        deform_ratio: Width of the values in deformable attention, relative to the width of the tokens.
        prior_channels: Channels of the first convolutions of the adapter.
        feature_pyramid: Whether the four maps are combined by a feature pyramid; otherwise each is projected
            separately.
    """

    width: PositiveInt = 192
    depth: PositiveInt = 12
    attention_heads: PositiveInt = 3
    attention_window: PositiveInt = 14
    window_padding: Literal["masked", "zeros"] = "masked"
    pretrain_size: Annotated[int, Field(gt=0, multiple_of=16)] = 224
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    adapter: bool = False
    deform_heads: PositiveInt = 6
    deform_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    prior_channels: PositiveInt = 64
    feature_pyramid: bool = True

    @model_validator(mode="after")
    def _check_transformer(self) -> Self:
        if self.depth % 4:
            raise ValueError(f"depth {self.depth} is not a multiple of 4")
        if self.width % self.attention_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of attention_heads {self.attention_heads}"
            )
        if self.adapter and (self.width * self.deform_ratio / self.deform_heads) % 1:
            raise ValueError(
                f"width {self.width} times deform_ratio {self.deform_ratio} is not a multiple of "
                f"deform_heads {self.deform_heads}"
            )
        return self
