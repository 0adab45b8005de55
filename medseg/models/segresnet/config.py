"""Options of MONAI's ``SegResNet``, and its names in the catalog. Free of torch and MONAI."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.catalog import ModelOptions, register_2d_and_3d
from medseg.models.unet.stage import Probability

_PAPER = "Myronenko 2018, 3D MRI brain tumor segmentation, arXiv:1810.11654"


@register_2d_and_3d(
    "segresnet",
    summary="MONAI's {} SegResNet without the autoencoder branch",
    reference=_PAPER,
    parameters=(394_986, 1_176_186),
)
class SegResNetOptions(ModelOptions):
    """The options of MONAI's ``SegResNet``: residual blocks with group norm, and sums instead of concatenated skips.

    Attributes:
        init_filters: Channels of the first stage, doubled at every further stage; a multiple of 8, the number of groups.
        blocks_down: Residual blocks of each encoder stage.
        blocks_up: Residual blocks of each decoder stage, one stage fewer than in the encoder.
        dropout: Dropout probability after the first convolution.
    """

    builder: ClassVar[str] = "medseg.models.segresnet.network:build"

    init_filters: Annotated[int, Field(ge=8, multiple_of=8)] = 8
    blocks_down: tuple[PositiveInt, ...] = Field((1, 2, 2, 4), min_length=2)
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _one_stage_fewer_up(self) -> Self:
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"blocks_up has {len(self.blocks_up)} entries, expected {len(self.blocks_down) - 1}: one less than "
                "blocks_down"
            )
        return self
