"""Settings of the adaptation of trained weights; free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medseg.config import Config


class AdaptSettings(Config):
    """How trained weights are fitted to the model of an experiment.

    Outputs of the network are matched by the names of labels or regions, input channels by the names of channels.

    Attributes:
        labels: Label or region of this experiment → its name in the source, where the two names differ.
        channels: Channel of this experiment → its name in the source, where the two names differ.
        new_channels: Kernels of a channel that the source does not have. ``share`` divides the sum of the kernels of the
            source's unused channels among the new ones, so that the response to equal channels stays the same; if all
            channels of the source are used, they are zero. ``zero`` is always zero: the network then starts with the
            logits that the source computes without the new channels.
        inflate: How kernels of a 2D network become those of a 3D network. ``mean`` repeats them along the new axis and
            divides by the length (Carreira & Zisserman 2017, arXiv:1705.07750), so that the response to a volume of equal
            slices stays the same; ``centre`` puts them into the middle, so that each slice is seen alone. Null refuses
            weights of a 2D network.
        member: Number of the network of an ensemble, from 0; null if the source is a single network.
        key: Entry that holds the state dict, for a file of ``torch.save`` with several; null if there is only one.
        source_labels: Names of the outputs, in order and with the background first, for a file that holds tensors only;
            null leaves the outputs new.
        source_channels: Names of the input channels, in order, for a file that holds tensors only; null keeps their order
            if there are as many as in this experiment.
    """

    labels: dict[str, str] = Field(default_factory=dict)
    channels: dict[str, str] = Field(default_factory=dict)
    new_channels: Literal["share", "zero"] = "share"
    inflate: Literal["mean", "centre"] | None = None
    member: int | None = Field(None, ge=0)
    key: str | None = None
    source_labels: tuple[str, ...] | None = None
    source_channels: tuple[str, ...] | None = None
