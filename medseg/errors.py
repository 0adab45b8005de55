"""Errors that state what a user can fix.

A message has four parts: where (file, field), what was found, what was expected, and what to do.
The command line prints `MedsegError` and its subclasses without a traceback.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_Result = TypeVar("_Result")
_MOST_COMPARED = 2000  # names of a folder that are compared with a wrong one
_LINE_BREAKS = "\n\t"
_JOINERS = "\u200c\u200d"  # part of ordinary words in several scripts
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")


class MedsegError(Exception):
    """A mistake that the user can fix; its text is the whole message.

    Control characters in the text, which may come from a file, are shown as escapes.

    >>> import medseg
    >>> try:
    ...     medseg.build_model("unett_3d", in_channels=1, num_classes=2)
    ... except MedsegError as error:
    ...     print(type(error).__name__)
    ConfigError
    """

    def __str__(self) -> str:
        return shown_text(super().__str__())


class ConfigError(MedsegError):
    """An experiment file, an override or an option cannot be used."""


class DataError(MedsegError):
    """A file or a dataset is missing, damaged, or not what it claims to be."""


class CasesFailedError(DataError):
    """Some cases of a dataset cannot be used; the message lists all of them, and what was done for the others is kept."""


class ModelError(MedsegError):
    """A model cannot be built, loaded, or applied to this input."""


class ResourceError(MedsegError):
    """The machine ran out of disk space or memory, or lost a device or a process; what is finished is kept.

    Attributes:
        exit_code: 4, by which a scheduler can tell this from a mistake in the command or the data.
    """

    exit_code = 4


class DiskFullError(ResourceError):
    """The disk, or the user's quota, is full, so that further files cannot be written either."""


def cases_failed(
    where: str | Path, failures: Sequence[MedsegError], cases: int, fix: str
) -> CasesFailedError | ResourceError:
    """Return the error that lists all cases that failed.

    Args:
        where: The dataset.
        failures: The error of each case that failed, at least one.
        cases: Number of all cases.
        fix: One imperative sentence.

    Returns:
        The error, which the caller raises: `ResourceError` if all cases failed for a lack of memory or a killed process.

    >>> print(cases_failed("data", [DataError("case a: found no label map.")], 12, "Fix it, or remove it."))
    data: 1 of 12 cases cannot be used:
      case a: found no label map.
    Fix it, or remove it.
    """
    lines = "".join(f"\n  {failure}" for failure in failures)
    kind = ResourceError if all(isinstance(one, ResourceError) for one in failures) else CasesFailedError
    return kind(
        f"{where}: {len(failures):,} of {cases:,} case{'s' * (cases != 1)} cannot be used:{lines}\n{fix}"
    )


def all_results(outcomes: Sequence[_Result | MedsegError], where: str | Path, fix: str) -> list[_Result]:
    """Return the results of all cases, or raise an error that lists those that failed.

    Args:
        outcomes: The result or the error of each case.
        where: The dataset.
        fix: One imperative sentence.

    Returns:
        The results, in the same order.

    Raises:
        CasesFailedError: A case failed.
        ResourceError: All cases that failed did so for a lack of memory or a killed process.
    """
    failures = [outcome for outcome in outcomes if isinstance(outcome, MedsegError)]
    if failures:
        raise cases_failed(where, failures, len(outcomes), fix)
    return [outcome for outcome in outcomes if not isinstance(outcome, MedsegError)]


class DataWarning(UserWarning):
    """A file can be used, but its content should be known or repaired.

    The command line prints it in one line on standard error.
    """


class LicenceNotice(DataWarning):
    """The licence of a model excludes some uses; the command line prints it in one line on standard error."""


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return the text of a warning for the command line; a `DataWarning` states by itself where it found what.

    Args:
        message: The warning or its text.
        category: Its class.
        filename: File of the code that warned.
        lineno: Line in that file.
        line: Text of that line, which is not shown.

    Returns:
        One line, with its end.

    >>> print(format_warning("ct.nii.gz: found 3 bytes after the voxels.", DataWarning, "nifti.py", 1), end="")
    warning: ct.nii.gz: found 3 bytes after the voxels.
    """
    if issubclass(category, DataWarning):
        return f"{'notice' if issubclass(category, LicenceNotice) else 'warning'}: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def warn_once(message: str, category: type[DataWarning] = DataWarning) -> None:
    """Warn of a file that can be used; the same message is not repeated by the same process.

    Files are read several times, by other threads and within other filters of warnings, so Python's own rule against
    repetitions does not suffice.

    Args:
        message: Where, what was found, what is done with it, and the remedy.
        category: Class of the warning.
    """
    message = shown_text(message)
    collected = _COLLECTED.get()
    if collected is None:
        _warn(message, category)  # type: ignore[arg-type]  # a class is hashable, which mypy does not see
    elif message not in collected:
        collected.append(message)


@cache
def _warn(message: str, category: type[DataWarning]) -> None:
    warnings.warn(message, category, stacklevel=3)


_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected warnings", default=None)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the messages of `warn_once` in this thread instead of showing them.

    Yields:
        The list that is filled, without repetitions. A message that was collected is still shown when it occurs later.

    >>> with collected_warnings() as messages:
    ...     warn_once("ct.nii.gz: found 3 bytes after the voxels.")
    >>> messages
    ['ct.nii.gz: found 3 bytes after the voxels.']
    """
    messages: list[str] = []
    token = _COLLECTED.set(messages)
    try:
        yield messages
    finally:
        _COLLECTED.reset(token)


def error_message(
    where: str | Path, what: str, *, found: object = None, expected: object = None, fix: str
) -> str:
    """Return a message of the form ``where: what: found X, expected Y. Fix``.

    Args:
        where: The file, and the field in it if there is one.
        what: What is wrong, without a final full stop.
        found: The value that was found; None to leave it out.
        expected: The value that would have been right; None to leave it out.
        fix: One imperative sentence.

    Returns:
        The message, which ends with the remedy.

    >>> error_message("plan.yaml", "train.steps", found=0, expected="at least 1", fix="Correct it")
    'plan.yaml: train.steps: found 0, expected at least 1. Correct it.'
    """
    values = []
    if found is not None:
        values.append(f"found {found}")
    if expected is not None:
        values.append(f"expected {expected}")
    detail = f": {', '.join(values)}" if values else ""
    return f"{where}: {what}{detail}. {fix.rstrip('.')}."


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'x'?`` for the known word nearest to `word`, or an empty string.

    Args:
        word: The unknown word.
        known: Words to choose from.
        cutoff: Smallest similarity, from 0 to 1.

    Returns:
        The hint with a leading space, so that it can follow a sentence.

    >>> did_you_mean("spacng", ["spacing", "shape"])
    " Did you mean 'spacing'?"
    """
    matches = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def no_such_path(
    path: str | Path, kind: str = "file or folder", *, expected: str = "", fix: str = "Check the path."
) -> str:
    """Return the message about a path that does not exist, with the most similar name in the same folder.

    Args:
        path: The path.
        kind: What there is not: "file", "folder" or "file or folder".
        expected: What was expected there; empty for nothing more than a path.
        fix: What the user can do.

    Returns:
        Text such as ``ct.nii: no such file. Did you mean 'ct.nii.gz'? Check the path.``

    >>> no_such_path("nowhere/model", "folder", expected="a model folder")
    'nowhere/model: no such folder, expected a model folder. Check the path.'
    """
    path = Path(path)
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_COMPARED)]
    except OSError:
        names = []
    ending = f", expected {expected}" if expected else ""
    return f"{path}: no such {kind}{ending}.{did_you_mean(path.name, names)} {fix}"


def shown_text(text: str) -> str:
    r"""Return text with control characters, bidirectional overrides and invalid characters written as escapes.

    Args:
        text: Text of unknown origin; line breaks and tabs stay, and so does a carriage return at its beginning, by which
            a progress bar redraws its line.

    Returns:
        Printable text.

    >>> shown_text("case \x1b[2J\u202etxt.exe")
    'case \\x1b[2J\\u202etxt.exe'
    """
    if text.isascii() and text.isprintable():
        return text
    start = "\r" if text.startswith("\r") else ""
    return start + "".join(_shown(character) for character in text.removeprefix("\r"))


def _shown(character: str) -> str:
    if character in _LINE_BREAKS or character in _JOINERS or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
