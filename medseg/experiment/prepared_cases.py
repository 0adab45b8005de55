"""Prepared cases that no run uses any more, and what killed processes have left: found, listed and removed.

Every run keeps the names of its prepared cases in ``prepared.json``. A case that no run next to the store names is unused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.prepare_cases import INDEX
from medseg.errors import DataError
from medseg.experiment.run_folder import PREPARED, RECORD
from medseg.storage.atomic import write_error, write_text
from medseg.storage.json_files import read_object
from medseg.storage.temporary_names import (
    abandoned,
    in_use,
    sweep,
    sweep_once,
    temporary_file,
    temporary_folder,
)

STORE = ".prepared"
FORMAT = 1


@dataclass(frozen=True)
class Unused:
    """A file or folder that nothing refers to.

    Attributes:
        path: The file or folder.
        size: Its bytes on the disk.
        why: Why it is not needed.
    """

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class UnusedFiles:
    """What can be removed in a folder of runs.

    Attributes:
        folder: The folder of the runs.
        items: What is unused.
        kept: Sentences that name what may be unused but is kept, with the reason.
    """

    folder: Path
    items: tuple[Unused, ...]
    kept: tuple[str, ...]

    @property
    def size(self) -> int:
        """The bytes that are freed by removing everything."""
        return sum(item.size for item in self.items)

    def remove(self) -> None:
        """Remove everything that is listed, unless it is needed by now.

        A prepared case is renamed before its files are removed, so that an interruption leaves no incomplete case.

        Raises:
            DataError: A file cannot be removed.
        """
        prepared = {path.name for path in _unused_cases(self.folder)[0]}
        for item in self.items:
            try:
                if item.path.parent.name != STORE or item.path.name.startswith("."):
                    sweep(item.path.parent)
                elif item.path.name in prepared:
                    moved = temporary_folder(item.path)
                    item.path.rename(moved)
                    shutil.rmtree(moved)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise write_error(item.path, error) from None


def find_unused(folder: Path) -> UnusedFiles:
    """Return what nothing refers to in a folder of runs: prepared cases, and temporary files of killed processes.

    Args:
        folder: The folder that contains the runs.

    Returns:
        The files and folders with their sizes; nothing has been removed.

    Raises:
        DataError: There is no such folder, or it holds neither runs nor prepared cases.
    """
    runs = list(_runs(folder))
    if not folder.is_dir() or (not runs and not (folder / STORE).is_dir()):
        raise DataError(
            f"{folder}: found neither runs nor prepared cases, expected the folder of runs. Give that folder."
        )
    cases, kept = _unused_cases(folder)
    places = [folder, folder / STORE, *runs, *(place for run in runs for place in _folders_in(run))]
    left = [path for place in places for path in abandoned(place)]
    items = [Unused(path, _size(path), "no run uses this prepared case") for path in cases]
    items += [Unused(path, _size(path), "left by a process that was killed") for path in left]
    return UnusedFiles(folder, tuple(items), tuple(kept))


@contextmanager
def store_in_use(store: Path) -> Iterator[None]:
    """Return a context in which `find_unused` keeps all prepared cases of a store, because a new run may need them.

    The marks of trainings that were killed in this context are removed.

    Args:
        store: The folder of prepared cases; it is created.
    """
    mark = temporary_file(store / "in.use")
    with suppress(OSError):
        store.mkdir(parents=True, exist_ok=True)
        sweep_once(store)
        mark.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def write_prepared(run: Path, cases: Iterable[StoredCase]) -> None:
    """Keep the names of the prepared cases of a run.

    Args:
        run: The run folder.
        cases: Its prepared cases.
    """
    names = sorted({case.folder.name for case in cases})
    write_text(run / PREPARED, json.dumps({"format": FORMAT, "folders": names}, indent=1) + "\n")


def _unused_cases(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the prepared cases that no run names, and why others are kept; none if it cannot be known."""
    store = folder / STORE
    working = [path for path in in_use(store) if path.suffix == ".use"]
    if working:
        return [], [f"{store}: a training is being prepared ({working[0].name}). Wait for it, then clean."]
    used: set[str] = set()
    for run in _runs(folder):
        try:
            used.update(_names(run))
        except DataError as error:
            return [], [f"{error} All prepared cases are kept."]
    found = [path for path in _folders_in(store) if path.name not in used and not path.name.startswith(".")]
    return found, []


def _names(run: Path) -> Sequence[str]:
    """Return the names of the prepared cases of a run; none for a cross-validation, whose folds have their own."""
    file = run / PREPARED
    record = read_object(run / RECORD)
    if record.get("kind") == "cross_validation":
        return ()
    advice = "Resume the run, or remove its folder."
    if not file.is_file():
        raise DataError(f"{file}: missing, so that the prepared cases of this run are not known. {advice}")
    values = read_object(file)
    folders = values.get("folders")
    if values.get("format") != FORMAT or not isinstance(folders, list):
        raise DataError(f"{file}: found another format, expected {FORMAT}. {advice}")
    if not all(isinstance(name, str) for name in folders):
        raise DataError(f"{file}: folders: found something else than names, expected names only. {advice}")
    return folders


def _runs(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder, and the folds of cross-validations."""
    for path in _folders_in(folder):
        if (path / RECORD).is_file():
            yield path
            yield from (fold for fold in _folders_in(path) if (fold / RECORD).is_file())


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else [file for file in path.rglob("*") if not file.is_dir()]
    return sum(file.lstat().st_size for file in files if file.name != INDEX)
