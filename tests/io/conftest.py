"""Both kinds of NIfTI files."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[".nii", ".nii.gz"])
def suffix(request: pytest.FixtureRequest) -> str:
    """The ending of a raw or a compressed file."""
    return str(request.param)
