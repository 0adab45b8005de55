"""Names and paths in datasets: valid ids, and paths that stay inside a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from medseg.errors import DataError

CHANNEL_FILE = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
"""Stem of an image file that holds one channel: ``<id>_0000``."""


def sanitised_id(name: str) -> str:
    """Return the name with every character that is not allowed in an id replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:128] or "_"


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted; an empty list if there is no such folder.

    Hidden files are left out, because archives created on a Mac contain a ``._name`` for each file.
    """
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and not f.is_dir())


def path_inside(root: Path, name: Any, where: str) -> Path:
    """Return the path of `name` in a dataset's folder, which it must not leave.

    Links in the folder are followed: users keep large files elsewhere by links, and the archive extractor creates none.

    Args:
        root: Folder of the dataset.
        name: Relative path as written in a table or a ``dataset.json``.
        where: File and field, for messages.

    Returns:
        The path, starting with `root`; it may not exist.

    Raises:
        DataError: The name is not text, or the path is absolute or leaves the folder by ``..``.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: found {name!r}, expected a path. Correct it.")
    relative = os.path.normpath(name.replace("\\", "/"))
    if Path(relative).is_absolute() or re.match(r"[A-Za-z]:", relative) or relative.split("/")[0] == "..":
        raise DataError(f"{where}: {name!r} is outside {root}. Give a path inside, relative to it.")
    return root / relative


def folder_name(path: Path) -> str:
    """Return the name of a folder, or of the folder that holds a file; also for ``.``."""
    return (path if path.is_dir() else path.parent).resolve().name or "dataset"
