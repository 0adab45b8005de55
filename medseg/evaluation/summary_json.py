"""``summary.json``: the results of an evaluation as JSON with a format version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.runtime.machine import installed_version
from medseg.storage.atomic import write_text

SUMMARY_FORMAT = 1
"""Version of the file, stored under ``format``; raised when the meaning of a key changes."""


def finite_or_none(value: float) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON cannot represent."""
    return value if np.isfinite(value) else None


def finite_values(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return a copy of a mapping in which None replaces NaN and infinity."""
    return {key: finite_or_none(value) for key, value in values.items()}


def write_summary_json(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write a summary with sorted keys, adding the format version and the version of medseg.

    Args:
        summary: Plain values without NaN or infinity.
        path: The JSON file.

    Raises:
        DataError: The file cannot be written.
    """
    values = {**summary, "format": SUMMARY_FORMAT, "medseg_version": installed_version()}
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")
