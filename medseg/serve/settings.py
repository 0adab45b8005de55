"""What an administrator decides about the service: where it keeps its files, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import ConfigError
from medseg.runtime.machine import user_cache_folder

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class ServiceSettings:
    """The folder and the limits of the service.

    Attributes:
        folder: Folder of all jobs; created if it does not exist.
        max_upload: Largest upload in bytes.
        max_queue: Largest number of jobs that are being uploaded or wait.
        max_disk: Bytes that all jobs together may take; reached, uploads are refused.
        timeout: Seconds after which a prediction is stopped.
        keep: Seconds after its end at which a job is deleted.
        patience: Seconds without a byte after which an upload is given up.
    """

    folder: Path
    max_upload: int = 2 * 10**9
    max_queue: int = 100
    max_disk: int = 20 * 10**9
    timeout: float = 3600.0
    keep: float = 24 * 3600.0
    patience: float = 60.0


@dataclass(frozen=True)
class ModelSettings:
    """The models that the service offers, and how they predict.

    Attributes:
        folders: The model folders.
        settings: Prediction settings that replace the stored ones of every model, see `medseg.load`.
        device: Device such as ``"cuda:0"``; None for CUDA if available.
        max_memory: Maximum resident memory of the prediction process, such as ``"6GB"``; None for half of the free memory.
        max_device_memory: Maximum memory on a CUDA device; None for nine tenths of the free memory.
    """

    folders: tuple[str, ...]
    settings: dict[str, object] = field(default_factory=dict)
    device: str | None = None
    max_memory: str | None = None
    max_device_memory: str | None = None


def default_folder() -> Path:
    """Return the folder of jobs in the user's cache."""
    return user_cache_folder("serve")


def parse_duration(text: str, setting: str) -> float:
    """Return the seconds of a duration with its unit.

    Args:
        text: A positive number with the unit ``s``, ``m``, ``h`` or ``d``.
        setting: Name of the option, for the message.

    Returns:
        Seconds.

    Raises:
        ConfigError: The text is no duration.

    >>> parse_duration("90s", "--timeout"), parse_duration("1.5h", "--keep"), parse_duration("2d", "--keep")
    (90.0, 5400.0, 172800.0)
    """
    words = text.strip().lower()
    number, unit = words[:-1], words[-1:]
    plain = number.replace(".", "", 1)
    seconds = float(number) * _UNITS[unit] if unit in _UNITS and plain.isascii() and plain.isdecimal() else 0
    if not 0 < seconds < 10**10:
        raise ConfigError(
            f"{setting}: found {text!r}, expected a number with its unit s, m, h or d, such as 24h. Correct it."
        )
    return seconds
