"""An index of content hashes, so that files whose content is known are not read again."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg.errors import DataError, ResourceError
from medseg.storage.atomic import write_text
from medseg.storage.file_state import FileState
from medseg.storage.json_files import read_object

FORMAT = 1


class ContentIndex:
    """The content hashes of files, kept in a JSON file from one program to the next.

    The file maps the path of each file to its stamp and its content hash, as `FileState` defines them. A content hash is
    taken from the index only if the stamp is the same; otherwise the file is read. So the index saves time and never
    decides what the content is: it may be deleted, and a damaged one, or one in another format, is replaced.

    Args:
        file: The JSON file, which need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read(file)
        self._new: dict[str, FileState] = {}

    def state(self, paths: Sequence[Path]) -> FileState:
        """Return the state of files that belong together.

        Args:
            paths: Files and folders, as for `FileState.of`; the first one names the entry of the index.

        Returns:
            Their state.

        Raises:
            OSError: A file is missing or cannot be read.
        """
        known = self.known(paths)
        if known is None:
            known = FileState.of(paths)
            self.add(paths, known)
        return known

    def known(self, paths: Sequence[Path]) -> FileState | None:
        """Return the state of files if they need not be read for it, else None.

        Args:
            paths: As for `state`.

        Returns:
            Their state, or None.

        Raises:
            OSError: A file is missing.
        """
        name = str(paths[0].absolute())
        known = self._new.get(name) or self._known.get(name)
        return known if known is not None and known.has_stamp_of(paths) else None

    def add(self, paths: Sequence[Path], state: FileState) -> None:
        """Add the state of files that was found by another process.

        Args:
            paths: As for `state`.
            state: Their state.
        """
        self._new[str(paths[0].absolute())] = state

    def save(self) -> None:
        """Add the new entries to the file, if there are any.

        Entries that another process added since are kept. A folder that cannot be written to costs only time: the files
        are read again by the next program.
        """
        if not self._new:
            return
        with _one_at_a_time(self._file.parent):
            self._known = _read(self._file) | self._new
            self._new = {}
            files = {name: [state.stamp, state.content] for name, state in sorted(self._known.items())}
            with contextlib.suppress(DataError, ResourceError):
                write_text(self._file, json.dumps({"format": FORMAT, "files": files}, indent=0))


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for other processes of this host in the same context, where the file system can lock a folder."""
    handle = None
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _read(file: Path) -> dict[str, FileState]:
    """Return the entries of an index; none if it is missing, damaged or in another format."""
    try:
        values = read_object(file)
        if values["format"] != FORMAT:
            return {}
        return {
            name: FileState(str(stamp), str(content)) for name, (stamp, content) in values["files"].items()
        }
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return {}
