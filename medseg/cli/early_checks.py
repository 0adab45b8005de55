"""Checks of what a user typed, before libraries are imported that take seconds to load."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from medseg.errors import DataError, MedsegError, no_such_path


def require_paths(
    paths: Iterable[str | Path | None],
    kind: str = "file or folder",
    *,
    expected: str = "",
    fix: str = "Check the path.",
    error: type[MedsegError] = DataError,
) -> None:
    """Raise unless all paths exist; their content is checked later.

    Args:
        paths: Paths from the command line; None for an option that was not given.
        kind: What is missing, see `no_such_path`, like the following arguments.
        expected: What was expected.
        fix: What the user can do.
        error: Kind of error.

    Raises:
        MedsegError: A path does not exist; a link whose target is missing counts as existing.
    """
    for path in paths:
        if path is not None and not Path(path).exists() and not Path(path).is_symlink():
            raise error(no_such_path(path, kind, expected=expected, fix=fix))


def positive(text: str) -> int:
    """Return the whole number above 0 that an option states; for the parser of a command."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Return the whole number from 0 on that an option states; for the parser of a command."""
    return _at_least(0, text)


def _at_least(smallest: int, text: str) -> int:
    from argparse import ArgumentTypeError

    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < smallest:
        raise ArgumentTypeError(f"found {text[:40]!r}, expected a whole number from {smallest}")
    return int(text)
