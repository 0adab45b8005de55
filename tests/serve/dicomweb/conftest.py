"""A DICOMweb server in this process, and what predicts without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg.io.dicomweb.address import Address
from medseg.io.dicomweb.server import DicomWeb
from tests.helpers.dicomweb_stub import Stub, dicomweb_stub
from tests.helpers.services import Running, running


@pytest.fixture
def stub() -> Iterator[Stub]:
    with dicomweb_stub() as found:
        yield found


@pytest.fixture
def archive(stub: Stub, toy_model: Path, tmp_path: Path) -> Iterator[Running]:
    """A service with a DICOMweb server."""
    with running(tmp_path / "service", toy_model, dicomweb=DicomWeb(Address(stub.address))) as found:
        yield found
