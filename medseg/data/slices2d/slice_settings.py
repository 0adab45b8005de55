"""How a 2-D model sees the slices of a volume; free of torch. The defaults change nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.config import Config
from medseg.data.preprocessing.normalize import LOWEST_STORED_HU, Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Axes
from medseg.errors import ConfigError

Width = Annotated[float, Field(gt=0)]
CtWindow = tuple[float, Width]
LUNG, SOFT_TISSUE, BONE = (-600.0, 1500.0), (40.0, 400.0), (400.0, 1800.0)
_DEPTH = 16


class SliceSettings(Config):
    """How the slices of a volume become the images of a 2-D model.

    Attributes:
        channels: ``as_is``; ``repeat`` one channel `copies` times, for stems that expect colour; ``neighbours``, the
            slices beside each one as channels besides; ``ct_windows``, one channel of CT as several windows of it.
        copies: channels made by ``repeat``.
        neighbours: slices on each side for ``neighbours``; outside of the volume they are 0.
        windows: level and width (HU) of each channel made by ``ct_windows``; lung, soft tissue and bone unless told.
            Values become 0 to 1 from the lower to the upper end.
        radiological_view: turn slices as a radiologist sees them, as natural images are upright, and turn results back:
            rows run from anterior to posterior (axial) or from superior to inferior, columns from the patient's right
            to left or from anterior to posterior (sagittal).
        planes: predict across each of these array axes, such as 0, 1 and 2, and average the logits; empty for the
            slice axis of the patch alone, on which the model is trained in any case.
        batch_size: slices that the model sees at once; null for all.
    """

    channels: Literal["as_is", "repeat", "neighbours", "ct_windows"] = "as_is"
    repeats: int = Field(3, ge=1)
    neighbours: int = Field(1, ge=1)
    ct_windows: tuple[CtWindow, ...] = Field((LUNG, SOFT_TISSUE, BONE), min_length=1)
    radiological_view: bool = False
    planes: Axes = ()
    batch_size: int | None = Field(16, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> SliceSettings:
        if len(self.planes) == 1:
            raise ValueError(
                "planes: found one, expected several or none. Choose one plane by patch.slice_axis instead"
            )
        if self.channels == "neighbours" and self.planes:
            raise ValueError(
                "planes: found several with channels=neighbours, expected one, because each plane has other "
                "neighbours. Choose one of the two"
            )
        return self

    @property
    def thickness(self) -> int:
        """Slices that one image of the model is made of."""
        return 2 * self.neighbours + 1 if self.channels == "neighbours" else 1

    def num_channels(self, channels: int) -> int:
        """Channels of the model for a volume of `channels`.

        Raises:
            ConfigError: several channels, where one is to be repeated or shown in windows.
        """
        if self.channels in ("repeat", "ct_windows") and channels != 1:
            raise ConfigError(
                f"slices.channels: found {self.channels} with {channels} channels, expected one. Use as_is or neighbours."
            )
        made = {
            "repeat": self.repeats,
            "ct_windows": len(self.ct_windows),
            "neighbours": channels * self.thickness,
        }
        return made.get(self.channels, channels)

    def window(self, patch: tuple[int, int, int], axis: int) -> tuple[int, int, int]:
        """The window of prediction for a 2-D `patch` that has size 1 across the slices, along `axis`.

        Several planes need it as long that way; neighbours need some slices at once, of which the outer ones, whose
        neighbours lie outside of the window, count little where windows are blended by a Gaussian.
        """
        sizes = list(patch)
        if self.planes:
            sizes[axis] = max(patch)
        elif self.channels == "neighbours":
            sizes[axis] = _DEPTH
        return (sizes[0], sizes[1], sizes[2])

    def hounsfield(self, preprocessing: Preprocessing) -> tuple[float, float]:
        """Factor and offset from prepared values to Hounsfield units, for ``ct_windows``; (1, 0) for other channels.

        Raises:
            ConfigError: the intensities were normalised so that the windows cannot be had from them.
        """
        if self.channels != "ct_windows":
            return 1.0, 0.0
        channel = preprocessing.channels[0]
        if channel.method == "none":
            return 1.0, 0.0
        lows = [max(level - width / 2, LOWEST_STORED_HU) for level, width in self.ct_windows]
        highs = [level + width / 2 for level, width in self.ct_windows]
        if channel.method != "ct" or not _holds(channel, min(lows), max(highs)):
            kept = f"{channel.low} to {channel.high} HU" if channel.method == "ct" else channel.method
            raise ConfigError(
                f"slices.channels: windows need {min(lows):g} to {max(highs):g} HU, found intensities normalised by "
                f"{kept}. Set preprocess.normalize to hounsfield."
            )
        return channel.std, channel.mean


def _holds(channel: Normalization, low: float, high: float) -> bool:
    """Whether intensities from `low` to `high` come through the channel's clipping; no bound means no clipping."""
    return (channel.low is None or channel.low <= low) and (channel.high is None or channel.high >= high)
