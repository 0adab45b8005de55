"""Every test of this folder runs with one thread of torch."""

from __future__ import annotations

from tests.helpers.runs import single_thread

__all__ = ["single_thread"]
