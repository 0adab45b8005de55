"""Stamps of files: short texts that change when a file changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def file_stamps(paths: Iterable[Path], root: Path | None = None) -> list[tuple[str, int, int]]:
    """Return name, bytes and modification time (nanoseconds) of each file; a folder stands for its files.

    Args:
        paths: Files, and folders such as a DICOM series.
        root: Folder that names are relative to, so that a moved dataset keeps its stamps; None keeps full paths.
    """
    files = [part for path in paths for part in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [
        (
            str(file.relative_to(root) if root is not None and file.is_relative_to(root) else file),
            file.stat().st_size,
            file.stat().st_mtime_ns,
        )
        for file in files
    ]


def short_hash(facts: Any) -> str:
    """Return 16 hexadecimal digits that change with any of `facts`.

    Args:
        facts: Plain values, as JSON holds them.

    >>> short_hash([1, "a"]) == short_hash([1, "b"])
    False
    """
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
