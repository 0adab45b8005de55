"""The normalisation of a channel, chosen by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medseg.data.settings import Method
from medseg.errors import DataError

_METHODS: dict[str, Method] = {
    "ct": "ct",
    "zscore": "zscore",
    "nonorm": "none",
    "rescale_to_0_1": "rescale",
    "rgb_to_0_1": "rgb",
}


def channel_method(name: str) -> Method:
    """Return the normalisation of a channel with this name.

    ``CT`` is normalised by its foreground statistics. nnU-Net's names ``noNorm``, ``rescale_to_0_1`` and ``rgb_to_0_1``
    have their meaning there, and every other name is normalised by z-score. Case and surrounding spaces are ignored.

    Args:
        name: Name of the channel in the dataset.

    Returns:
        Name of the method.

    Examples:
        >>> channel_method("CT"), channel_method("T1w"), channel_method("noNorm")
        ('ct', 'zscore', 'none')
    """
    return _METHODS.get(name.strip().casefold(), "zscore")


def resolve_methods(
    wanted: str | Sequence[str], channel_names: Sequence[str]
) -> tuple[Method | Literal["hounsfield"], ...]:
    """Return one method per channel, with ``auto`` replaced by `channel_method`.

    Args:
        wanted: One method for all channels, or one per channel.
        channel_names: Names of the dataset's channels.

    Returns:
        One method per channel.

    Raises:
        DataError: The number of methods is not the number of channels.
    """
    methods = [wanted] * len(channel_names) if isinstance(wanted, str) else list(wanted)
    if len(methods) != len(channel_names):
        raise DataError(
            f"preprocess.normalize: found {len(methods)} methods, expected {len(channel_names)}, one per channel "
            f"({', '.join(channel_names)}). Give one for each."
        )
    automatic = [channel_method(name) for name in channel_names]
    return tuple(a if m == "auto" else m for m, a in zip(methods, automatic, strict=True))  # type: ignore[misc]
