"""A DICOMweb server in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.dicomweb_stub import Stub, dicomweb_stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    with dicomweb_stub() as found:
        yield found
