"""Golden values of preprocessing, and the array that they were computed from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def golden(shared_reference: Path) -> dict[str, Any]:
    """The golden values, by kind."""
    values: dict[str, Any] = json.loads((shared_reference / "numeric_golden.json").read_text())
    return values


def golden_data() -> NDArray[np.float32]:
    """Return the array `(4, 5, 6)` that the golden values belong to."""
    i, j, k = np.meshgrid(range(4), range(5), range(6), indexing="ij")
    return (10 * np.sin(0.7 * i + 1.3 * j + 0.4 * k)).astype(np.float32)
