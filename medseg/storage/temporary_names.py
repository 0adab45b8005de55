"""Names of temporary files, and the removal of those that a killed process has left.

A temporary name holds the host, the process ID and a random part: ``.tmp-3f2a9c-4711-9b1e.nii.gz`` for a file,
``.tmp-3f2a9c-4711-9b1e.new.model`` for a folder. Whether its process still runs is known on the same host only, so that
files of other hosts that share the folder are never touched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from pathlib import Path

import psutil

_PATTERN = re.compile(
    r"\.tmp-(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{4}(?:\.(?P<kind>new|old)\.(?P<name>.+))?",
    re.DOTALL,  # names may hold line breaks
)
_LONGEST_SUFFIX = 32
_swept: set[Path] = set()


def temporary_file(path: Path) -> Path:
    """Return a temporary path next to a file.

    Args:
        path: The file to create or replace.

    Returns:
        A hidden path in the same folder that no other process uses. It keeps the suffixes, by which writers choose the
        format, but not the name, so that it is not longer than the file system allows.
    """
    suffix = "".join(path.suffixes)
    return path.with_name(f"{_prefix()}{suffix if len(suffix) <= _LONGEST_SUFFIX else path.suffix}")


def temporary_folder(path: Path, kind: str = "new") -> Path:
    """Return a temporary path next to a folder.

    Args:
        path: The folder to create or replace.
        kind: ``new`` for a folder that is being written, ``old`` for one that is being replaced.

    Returns:
        A hidden path in the same folder that no other process uses.
    """
    return path.with_name(f"{_prefix()}.{kind}.{path.name}")


def sweep_once(folder: Path) -> None:
    """Remove what killed processes of this host left in a folder, at the first call for this folder in a process.

    Args:
        folder: A folder that is about to be written to; it need not exist.
    """
    folder = folder.absolute()
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes of this host that no longer run.

    A replaced folder whose successor never got its name is renamed back, so that nothing is lost.

    Args:
        folder: The folder; files in its subfolders are left alone.
    """
    for path in abandoned(folder):
        found = _PATTERN.match(path.name)
        assert found is not None
        with contextlib.suppress(OSError):
            _remove(path, found["kind"], found["name"])


def abandoned(folder: Path) -> list[Path]:
    """Return the temporary files and folders of processes of this host that no longer run.

    Args:
        folder: The folder; its subfolders are not searched.

    Returns:
        Their paths; none for a folder that does not exist.
    """
    return [path for path, runs in _temporary(folder) if not runs]


def in_use(folder: Path) -> list[Path]:
    """Return the temporary files and folders of running processes, and those of other hosts, which may be running.

    Args:
        folder: The folder; its subfolders are not searched.

    Returns:
        Their paths; none for a folder that does not exist.
    """
    return [path for path, runs in _temporary(folder) if runs]


def _temporary(folder: Path) -> list[tuple[Path, bool]]:
    """Return each temporary path in a folder, and whether its process runs or may run."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    matches = [(path, _PATTERN.match(path.name)) for path in paths]
    return [
        (path, found["host"] != _host() or _is_running(int(found["pid"])))
        for path, found in matches
        if found is not None
    ]


def _is_running(pid: int) -> bool:
    """Return whether a process is running; a zombie, which its parent has not collected as in some containers, is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _remove(path: Path, kind: str | None, name: str | None) -> None:
    if kind == "old" and name and not path.with_name(name).exists():
        path.rename(path.with_name(name))
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _prefix() -> str:
    return f".tmp-{_host()}-{os.getpid()}-{secrets.token_hex(2)}"


@functools.cache
def _host() -> str:
    """Return a short hash of the host and, on Linux, of the PID namespace, because containers number processes anew."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:6]
