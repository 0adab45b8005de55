"""Options of the attention gates. Free of torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from medseg.config import Config


class GateOptions(Config):
    """Additive attention gates on the skips (Oktay et al. 2018, "Attention U-Net", arXiv:1804.03999).

    Lists have one entry per decoder level, deepest first.

    Args:
        inter_channels: width in which skip and gating signal are added; one for all, a list, or None for half of
            the skip's width.
        enabled: which levels are gated; None gates all but the shallowest, as in the paper, whose authors found
            the first skip too little processed to be gated.
        shallowest: gate the shallowest level too; for use with ``enabled: null``.
        coefficients: attention maps per gate; each scales an equal share of the skip's channels.
        resample: how the gating signal and the coefficients are brought to the grid they meet.
        pass_through: start with open gates (coefficients of 0.99995 everywhere), so that training starts from
            a plain U-Net.
    """

    inter_channels: PositiveInt | tuple[PositiveInt, ...] | None = None
    enabled: tuple[bool, ...] | None = None
    shallowest: bool = False
    coefficients: PositiveInt = 1
    resample: Literal["linear", "nearest"] = "linear"
    pass_through: bool = False

    @model_validator(mode="after")
    def _one_voice(self) -> Self:
        if self.shallowest and self.enabled is not None:
            raise ValueError("shallowest and enabled are both given; say it in the enabled list alone")
        return self

    def switches(self, levels: int) -> tuple[bool, ...]:
        """Which of the `levels` decoder levels are gated, deepest first."""
        return (True,) * (levels - 1) + (self.shallowest,) if self.enabled is None else self.enabled

    def widths(self, skip_widths: tuple[int, ...]) -> tuple[int, ...]:
        """Inner width of the gate of each level, deepest first."""
        if self.inter_channels is None:
            return tuple(max(1, width // 2) for width in skip_widths)
        if isinstance(self.inter_channels, int):
            return (self.inter_channels,) * len(skip_widths)
        return self.inter_channels

    def check(self, skip_widths: tuple[int, ...]) -> None:
        """Raise ValueError unless lists have one entry per level and coefficients divide the gated skips."""
        levels = len(skip_widths)
        for key, found in (("inter_channels", self.inter_channels), ("enabled", self.enabled)):
            if isinstance(found, tuple) and len(found) != levels:
                raise ValueError(
                    f"gate.{key} has {len(found)} entries, expected {levels}: one per decoder level, deepest first"
                )
        for width, gated in zip(skip_widths, self.switches(levels), strict=True):
            if gated and width % self.coefficients:
                raise ValueError(
                    f"gate.coefficients is {self.coefficients}, expected a divisor of the skip's {width} channels"
                )
