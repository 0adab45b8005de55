"""Free space on a disk, compared with what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from medseg.errors import DiskFullError
from medseg.runtime.memory import format_size


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise if a disk has less free space than the files that are to be written take at least.

    Args:
        folder: Folder of the files, which may not exist yet.
        needed: Bytes that they take at least.
        what: What is written, for the message.

    Raises:
        DiskFullError: The free space does not suffice.

    Examples:
        >>> require_space(Path("."), 10, "ten bytes")
        >>> require_space(Path("."), 10**24, "a septillion bytes")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        medseg.errors.DiskFullError: .: free space: ...
    """
    existing = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    if existing is None:
        return
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DiskFullError(
            f"{folder}: free space: found {format_size(free)}, expected at least {format_size(needed)} for "
            f"{what}. Free space, or choose another folder."
        )
