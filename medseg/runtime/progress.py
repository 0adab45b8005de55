"""How long operations report their progress."""

from __future__ import annotations

from collections.abc import Callable

OnCase = Callable[[int, int, str], None]
