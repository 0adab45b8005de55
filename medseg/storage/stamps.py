"""Stamps of files: short texts that change when a file changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def file_stamps(paths: Iterable[Path], root: Path | None = None) -> list[tuple[str, int, int]]:
    """Return the stamps of files, by which changes of a dataset are recognised.

    Args:
        paths: Files, and folders such as a DICOM series. A folder is replaced by the sorted files in it.
        root: Folder that names are relative to, so that a moved dataset keeps its stamps; None keeps full paths.

    Returns:
        Name, bytes and modification time (nanoseconds) of each file.
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
    """Return a hash that changes with any of `facts`.

    Args:
        facts: Plain values, as JSON holds them.

    Returns:
        16 hexadecimal digits. The order of keys does not matter.

    >>> short_hash([1, "a"]) == short_hash([1, "b"])
    False
    """
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
