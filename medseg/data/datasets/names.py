"""Names and paths in datasets: what may be an id, and what lies inside a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from medseg.errors import DataError

CHANNEL_FILE = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
"""Stem of an image file that holds one channel: ``<id>_0000``."""


def sanitised_id(name: str) -> str:
    """The name with every character that an id may not hold replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:128] or "_"


def visible_files(folder: Path) -> list[Path]:
    """Files in a folder, sorted, without hidden ones (archives made on a Mac hold ``._name`` beside each
    file); empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and not f.is_dir())


def path_inside(root: Path, name: Any, where: str) -> Path:
    """The path that `name` means in a dataset's folder, which it may not leave.

    Links in the folder are followed: they are the user's own way to keep large files elsewhere, and the
    archive extractor makes none.

    Raises:
        DataError: no text, an absolute path, or one that leads out by ``..``.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: found {name!r}, expected a path. Correct it.")
    relative = os.path.normpath(name.replace("\\", "/"))
    if Path(relative).is_absolute() or re.match(r"[A-Za-z]:", relative) or relative.split("/")[0] == "..":
        raise DataError(f"{where}: {name!r} lies outside of {root}. Give a path inside, relative to it.")
    return root / relative


def folder_name(path: Path) -> str:
    """Name of a folder, or of the folder that holds a file; also for ``.``."""
    return (path if path.is_dir() else path.parent).resolve().name or "dataset"
