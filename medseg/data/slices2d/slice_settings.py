"""Settings of the slices that a 2D model sees; torch is not imported. The defaults change nothing."""

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
_DEPTH = 16  # slices per window, so that most slices have their neighbours in it


class SliceSettings(Config):
    """The conversion of the slices of a volume into the images of a 2D model.

    Attributes:
        channels: Channels of an image. ``as_is`` takes those of the volume. ``repeat`` repeats a single channel
            `repeats` times, for models that expect colour. ``neighbours`` adds the neighbouring slices as channels.
            ``ct_windows`` shows a single CT channel in several intensity windows.
        repeats: Number of channels with ``repeat``.
        neighbours: Number of slices on each side with ``neighbours``; beyond the volume they are 0.
        ct_windows: Level and width (HU) of each channel with ``ct_windows``; the default is lung, soft tissue and bone.
            The lower end of a window becomes 0 and the upper end 1.
        radiological_view: Whether slices are turned to the orientation in which radiologists read them, upright like
            natural images, and results are turned back. Rows run from anterior to posterior (axial) or from superior to
            inferior, columns from the patient's right to left or from anterior to posterior (sagittal).
        planes: Array axes across which volumes are predicted, such as 0, 1 and 2; the logits are averaged. Empty for the
            slice axis of the patch only. Training always uses that axis.
        batch_size: Number of slices that the model predicts at once; null for all.
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
        """The number of slices that one image of the model contains."""
        return 2 * self.neighbours + 1 if self.channels == "neighbours" else 1

    def num_channels(self, channels: int) -> int:
        """Return the number of channels of the model for a volume with this many channels.

        Args:
            channels: Number of channels of the volume.

        Returns:
            Number of channels of the images.

        Raises:
            ConfigError: There are several channels, but ``repeat`` and ``ct_windows`` need a single one.
        """
        if self.channels in ("repeat", "ct_windows") and channels != 1:
            raise ConfigError(
                f"slices.channels: found {self.channels} with {channels} channels, expected one. Use as_is or neighbours."
            )
        counts = {
            "repeat": self.repeats,
            "ct_windows": len(self.ct_windows),
            "neighbours": channels * self.thickness,
        }
        return counts.get(self.channels, channels)

    def window(self, patch: tuple[int, int, int], axis: int) -> tuple[int, int, int]:
        """Return the window of prediction.

        With several planes, the window is as long across the slices as in their plane. With neighbours, it holds several
        slices; the outer ones, whose neighbours are outside the window, have little weight in a Gaussian blend.

        Args:
            patch: Size of the 2D patch, 1 across the slices.
            axis: Array axis across the slices.

        Returns:
            Voxels per array axis.
        """
        sizes = list(patch)
        if self.planes:
            sizes[axis] = max(patch)
        elif self.channels == "neighbours":
            sizes[axis] = _DEPTH
        return (sizes[0], sizes[1], sizes[2])

    def hounsfield(self, preprocessing: Preprocessing) -> tuple[float, float]:
        """Return factor and offset from prepared intensities to HU for ``ct_windows``; (1, 0) for other channels.

        Args:
            preprocessing: Resolved preprocessing of the volumes.

        Returns:
            Factor and offset.

        Raises:
            ConfigError: The windows cannot be computed from intensities that were normalised in this way.
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
    """Return whether the channel keeps intensities from `low` to `high` without clipping them."""
    return (channel.low is None or channel.low <= low) and (channel.high is None or channel.high >= high)
