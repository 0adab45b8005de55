"""Stored cases written by hand, so that a test knows every voxel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.class_locations import locations_table

MakeStored = Callable[..., StoredCase]


@pytest.fixture
def make_stored(tmp_path: Path) -> MakeStored:
    """Factory: ``make_stored(image (c, x, y, z), label (x, y, z))``."""

    def make(image: NDArray[Any], label: NDArray[Any] | None = None, name: str = "case") -> StoredCase:
        label = np.zeros(image.shape[1:], np.uint8) if label is None else label
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "image.npy", image.astype(np.float32))
        np.save(folder / "label.npy", label[None])
        np.save(folder / "locations.npy", locations_table(label))
        return StoredCase(name, folder)

    return make
