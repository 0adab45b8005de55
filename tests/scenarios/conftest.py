"""Torch with one thread: toy networks are not faster with more, and results are equal only for equal numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.runs import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
