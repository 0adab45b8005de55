"""Folders that are whole or do not count: a manifest with the hash of every file is written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from medseg.errors import ModelError
from medseg.storage.atomic import write_text
from medseg.storage.formats import check_format

NAME = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path) -> None:
    """Record size and sha256 of every file in `folder` and the folders in it; this commits the folder."""
    files = {name: _entry(folder / name) for name in _names(folder)}
    write_text(folder / NAME, json.dumps({"format": FORMAT, "files": files}, indent=2, sort_keys=True) + "\n")


def check_manifest(folder: Path) -> None:
    """Compare `folder` with its manifest.

    Raises:
        ModelError: no manifest, a newer format, a missing, extra or changed file.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text())
        version, files = manifest["format"], dict(manifest["files"])
        if version == FORMAT and not all(isinstance(entry, dict) for entry in files.values()):
            raise TypeError
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, expected a complete folder. Copy it again.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path}: damaged. Copy the folder again.") from None
    check_format(version, FORMAT, path, "manifest", error=ModelError)
    # Folders that the manifest does not know are none of its business, such as one of pictures made later.
    inner = {str(name).split("/")[0] for name in files if "/" in str(name)}
    present = {name for name in _names(folder) if "/" not in name or name.split("/")[0] in inner}
    if present != set(files):
        missing, extra = sorted(set(files) - present), sorted(present - set(files))
        raise ModelError(
            f"{folder}: missing files: {', '.join(missing) or 'none'}; unexpected files: {', '.join(extra) or 'none'}. "
            "Copy it again."
        )
    for name, expected in files.items():
        found = _entry(folder / name)
        if found != expected:
            sizes = f"found {found['size']} bytes, expected {expected.get('size')}"
            what = sizes if found["size"] != expected.get("size") else "found another checksum than expected"
            raise ModelError(f"{folder / name}: {what}. The file changed; copy it again.")


def is_complete(folder: Path) -> bool:
    """Whether `folder` passes `check_manifest`."""
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
    """Files of a folder and of the folders in it that count, with ``/`` between the names."""
    names: list[str] = []
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        if path.name.startswith(".") or name == NAME:
            continue
        if path.is_file():
            names.append(name)
        elif path.is_dir() and not path.is_symlink():
            names += _names(path, f"{name}/")
    return names
