"""Whether a file system distinguishes upper and lower case, as Linux does and macOS and Windows usually do not."""

from __future__ import annotations

from pathlib import Path


def ignores_case(folder: Path) -> bool:
    """Return whether names that differ only in case are one file in this folder, which need not exist yet."""
    for existing in (folder.absolute(), *folder.absolute().parents):
        swapped = existing.with_name(existing.name.swapcase()) if existing.name else existing
        if existing.exists() and swapped.name != existing.name:
            return swapped.exists() and existing.samefile(swapped)
    return False
