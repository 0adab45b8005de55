"""Options of a vision transformer with or without an adapter. Free of torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.pretrained.config import PretrainedOptions


class ViTFields(PretrainedOptions):
    """A vision transformer of patches of 16, plain or with an adapter.

    Args:
        width: of the tokens.
        depth: blocks, a multiple of 4. Of each three (up to a depth of 12) or six the last attends to the whole
            image, the others in windows.
        heads: of attention.
        window: edge length of the windows, in patches.
        pretrain_size: edge length of the images that the position table is for, in voxels; it is resized for others.
        drop_path: rate of stochastic depth of the last block; it rises from 0 at the first.
        adapter: put the ViT-Adapter beside the transformer; else its quarters are resized into a pyramid.
        deform_heads: of the adapter's deformable attention.
        deform_ratio: width of its values over the width of the tokens.
        prior_channels: of the adapter's first convolutions.
        pyramid: mix the maps by a feature pyramid; else each is projected for itself.
    """

    width: PositiveInt = 192
    depth: PositiveInt = 12
    heads: PositiveInt = 3
    window: PositiveInt = 14
    pretrain_size: Annotated[int, Field(gt=0, multiple_of=16)] = 224
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    adapter: bool = False
    deform_heads: PositiveInt = 6
    deform_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    prior_channels: PositiveInt = 64
    pyramid: bool = True

    @model_validator(mode="after")
    def _check_transformer(self) -> Self:
        if self.depth % 4:
            raise ValueError(f"depth {self.depth} is not a multiple of 4")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.adapter and (self.width * self.deform_ratio / self.deform_heads) % 1:
            raise ValueError(
                f"width {self.width} times deform_ratio {self.deform_ratio} is not a multiple of "
                f"deform_heads {self.deform_heads}"
            )
        return self
