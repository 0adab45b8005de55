"""The folder of a cross-validation, and what its folds share.

``RUN/  config.yaml  splits.json  preprocessing.yaml  fold_0/ ...  predictions/  evaluation/  model/``. Every fold is a
run of its own that takes its split and its preprocessing from there, so that it can be resumed, predicted and
evaluated like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.splits import Split, read_splits
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ConfigError, DataError

SHARED = "preprocessing.yaml"
_FOLD = re.compile(r"fold_([0-9]+)")


def fold_folder(run: Path, fold: int) -> Path:
    """The run folder of one fold."""
    return run / f"fold_{fold}"


def is_cross_validation(run: Path) -> bool:
    """Return whether `run` holds folds; a single run also writes ``environment.json``, as its first file."""
    return (run / SHARED).is_file() and not (run / "environment.json").is_file()


def started_folds(run: Path) -> list[int]:
    """Folds of which something is there."""
    return sorted(int(f[1]) for path in run.glob("fold_*") if (f := _FOLD.fullmatch(path.name)))


def cross_validation_of(run: Path) -> Path | None:
    """The cross-validation that `run` is a fold of, if it is one."""
    run = run.absolute()
    return run.parent if _FOLD.fullmatch(run.name) and is_cross_validation(run.parent) else None


def shared_folder(run: Path) -> Path:
    """Where runs keep together what they share: prepared cases and phantoms. That of a fold lies a folder higher."""
    return (cross_validation_of(run) or run).parent


def shared_preprocessing(run: Path) -> Preprocessing | None:
    """The preprocessing of all folds if `run` is one of them, else None."""
    whole = cross_validation_of(run)
    return Preprocessing.load(whole / SHARED) if whole else None


def shared_split(run: Path, cases: Sequence[Case]) -> Split | None:
    """The split of `run` if it is a fold, else None."""
    whole, found = cross_validation_of(run), _FOLD.fullmatch(run.absolute().name)
    return read_splits(whole / "splits.json", cases)[int(found[1])] if whole and found else None


def check_held_out_once(splits: Sequence[Split], where: str) -> None:
    """Raise a `DataError` unless there are several folds, and no case is held out by two of them."""
    if len(splits) < 2:
        raise DataError(
            f"{where}: found {len(splits)} fold, expected at least 2 to cross-validate. Give more, or train without "
            "--all-folds."
        )
    seen: dict[str, int] = {}
    for fold, split in enumerate(splits):
        for case in split.validation:
            if case in seen:
                raise DataError(
                    f"{where}: case {case!r} is held out by folds {seen[case]} and {fold}, expected one, whose "
                    "prediction counts. Mend the splits."
                )
            seen[case] = fold


def check_new(run: Path) -> None:
    """Raise a `ConfigError` if `run` holds anything but what a cross-validation writes before its first fold."""
    known = {"config.yaml", "splits.json", SHARED}
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: found a file, expected a folder for the folds. Choose another one.")
    present = (
        {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.exists() else set()
    )
    single = "config.yaml" in present and (SHARED not in present or "environment.json" in present)
    if present - known or single:
        what = "a single run" if single else ", ".join(sorted(present - known)[:3])
        raise ConfigError(
            f"{run}: found {what} there already, expected a new folder or one of folds. Choose another folder."
        )
