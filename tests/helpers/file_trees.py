"""Folders of empty files, for tests that only look at names."""

from __future__ import annotations

from pathlib import Path


def write_tree(root: Path, *names: str) -> Path:
    """Create empty files and their folders below `root`, and return `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root
