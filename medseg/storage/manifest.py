"""Complete folders: a manifest with the hash of every file is written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from medseg.errors import ModelError
from medseg.storage.atomic import write_text
from medseg.storage.formats import check_format
from medseg.storage.json_files import parse_json

NAME = "manifest.json"
FORMAT = 1
_FOR_READERS = "README.md"  # people may edit it, in subfolders, too


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every file in a folder and its subfolders, which marks the folder as complete.

    Args:
        folder: The folder; hidden files and ``README.md`` are left out.
    """
    files = {name: _entry(folder / name) for name in _names(folder)}
    write_text(folder / NAME, json.dumps({"format": FORMAT, "files": files}, indent=2, sort_keys=True) + "\n")


def check_manifest(folder: Path) -> None:
    """Compare a folder with its manifest.

    Args:
        folder: A folder that `write_manifest` marked as complete.

    Raises:
        ModelError: There is no manifest, it has another format, or a file is missing, unexpected, unreadable or changed.
    """
    path = folder / NAME
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
        version, listed = manifest["format"], dict(manifest["files"])
        files = {name: entry for name, entry in listed.items() if name.split("/")[-1] != _FOR_READERS}
        if version == FORMAT and not all(isinstance(entry, dict) for entry in files.values()):
            raise TypeError
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, expected a complete folder. Copy it again.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path}: damaged. Copy the folder again.") from None
    check_format(version, FORMAT, path, "manifest", error=ModelError)
    # Subfolders that are not in the manifest may be added later, for example one of figures.
    inner = {str(name).split("/")[0] for name in files if "/" in str(name)}
    present = {name for name in _names(folder) if "/" not in name or name.split("/")[0] in inner}
    if present != set(files):
        missing, extra = sorted(set(files) - present), sorted(present - set(files))
        raise ModelError(
            f"{folder}: missing files: {', '.join(missing) or 'none'}; unexpected files: {', '.join(extra) or 'none'}. "
            "Copy it again."
        )
    for name, expected in files.items():
        try:
            found = _entry(folder / name)
        except OSError as error:
            raise ModelError(
                f"{folder / name}: cannot be read ({error.strerror}). Ask its owner for access, or copy the folder again."
            ) from None
        if found != expected:
            sizes = f"found {found['size']} bytes, expected {expected.get('size')}"
            hashes = f"found SHA-256 {found['sha256']}, expected {expected.get('sha256')}"
            what = sizes if found["size"] != expected.get("size") else hashes
            raise ModelError(f"{folder / name}: {what}. The file changed; copy it again.")


def is_complete(folder: Path) -> bool:
    """Return whether a folder passes `check_manifest`."""
    try:
        check_manifest(folder)
    except ModelError:
        return False
    return True


def _entry(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}


def _names(folder: Path, prefix: str = "") -> list[str]:
    """Return the files of a folder and its subfolders as relative paths with ``/``, without hidden ones."""
    names: list[str] = []
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        if path.name.startswith(".") or name == NAME or path.name == _FOR_READERS:
            continue
        if path.is_file():
            names.append(name)
        elif path.is_dir() and not path.is_symlink():
            names += _names(path, f"{name}/")
    return names
