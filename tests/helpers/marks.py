"""Marks of tests."""

from __future__ import annotations

import pytest


def known_fault(reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that fails because of a known fault, and that must be unmarked once this is repaired."""
    return pytest.mark.xfail(strict=True, reason=reason)
