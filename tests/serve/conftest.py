"""A toy model and a running service, which the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import single_thread as single_thread
from tests.helpers.services import Running, running, save_toy_model


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def service(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with one model, shared by the tests of a file."""
    with running(tmp_path_factory.mktemp("service"), toy_model) as found:
        yield found
