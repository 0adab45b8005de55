"""Options of the attention gates of an attention U-Net. Free of torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from medseg.config import Config


class GateOptions(Config):
    """The options of additive attention gates on the skip connections (Oktay et al. 2018, arXiv:1804.03999).

    Lists have one entry per decoder level, deepest first.

    Attributes:
        inter_channels: Width in which skip and gating signal are added: one number for all levels, a list, or None
            for half of the width of each skip.
        enabled: Whether each level is gated. None gates all levels except the shallowest, as in the paper, whose
            authors found the features of the first skip too little processed to be gated.
        include_shallowest: Whether the shallowest level is gated too; only with ``enabled: null``.
        num_coefficients: Attention maps per gate; each scales an equal part of the skip's channels.
        resample: Interpolation of the gating signal and of the attention maps, ``linear`` or ``nearest``.
        pass_through: Whether gates start open (coefficients of 0.99995 everywhere), so that training starts from a
            plain U-Net.

    Examples:
        >>> from medseg.models import GateOptions
        >>> GateOptions(include_shallowest=True).gated_levels(levels=3)
        (True, True, True)
        >>> GateOptions().widths(skip_widths=(64, 32, 16))
        (32, 16, 8)
    """

    inter_channels: PositiveInt | tuple[PositiveInt, ...] | None = None
    enabled: tuple[bool, ...] | None = None
    include_shallowest: bool = False
    num_coefficients: PositiveInt = 1
    resample: Literal["linear", "nearest"] = "linear"
    pass_through: bool = False

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if self.include_shallowest and self.enabled is not None:
            raise ValueError(
                "include_shallowest and enabled are both given; remove include_shallowest and extend the enabled list"
            )
        return self

    def gated_levels(self, levels: int) -> tuple[bool, ...]:
        """Return whether each of the `levels` decoder levels is gated, deepest first."""
        return (True,) * (levels - 1) + (self.include_shallowest,) if self.enabled is None else self.enabled

    def widths(self, skip_widths: tuple[int, ...]) -> tuple[int, ...]:
        """Return the inner width of the gate of each level, deepest first.

        Args:
            skip_widths: Channels of the skip of each level, deepest first.

        Returns:
            One width per level.
        """
        if self.inter_channels is None:
            return tuple(max(1, width // 2) for width in skip_widths)
        if isinstance(self.inter_channels, int):
            return (self.inter_channels,) * len(skip_widths)
        return self.inter_channels

    def check(self, skip_widths: tuple[int, ...]) -> None:
        """Raise ValueError unless the lists have one entry per level and the coefficients divide the gated skips.

        Args:
            skip_widths: Channels of the skip of each level, deepest first.

        Raises:
            ValueError: A list has another length, or num_coefficients does not divide the channels of a gated skip.
        """
        levels = len(skip_widths)
        for key, found in (("inter_channels", self.inter_channels), ("enabled", self.enabled)):
            if isinstance(found, tuple) and len(found) != levels:
                raise ValueError(
                    f"gate.{key} has {len(found)} entries, expected {levels}: one per decoder level, deepest first"
                )
        for width, gated in zip(skip_widths, self.gated_levels(levels), strict=True):
            if gated and width % self.num_coefficients:
                raise ValueError(
                    f"gate.num_coefficients is {self.num_coefficients}, expected a divisor of the skip's {width} channels"
                )
