"""Errors that tell a user what to mend.

A message has four parts: where (file, field), what was found, what was expected, and what to do.
`MedsegError` and its kinds are printed by the command line without a traceback.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class MedsegError(Exception):
    """A mistake that the user can mend; its text is the whole message."""


class ConfigError(MedsegError):
    """An experiment file, an override or an option that cannot be used."""


class DataError(MedsegError):
    """A file or a dataset that is missing, damaged, or not what it claims to be."""


class ModelError(MedsegError):
    """A model that cannot be built, loaded, or fed with this input."""


def error_message(
    where: str | Path, what: str, *, found: object = None, expected: object = None, fix: str
) -> str:
    """Compose a message: ``where: what: found X, expected Y. Fix.``

    Args:
        where: the file, and the field in it where there is one.
        what: what is wrong, without a final full stop.
        found: the value met, if one says more than `what`.
        expected: the value that would have been right.
        fix: one imperative sentence.
    """
    values = []
    if found is not None:
        values.append(f"found {found}")
    if expected is not None:
        values.append(f"expected {expected}")
    detail = f": {', '.join(values)}" if values else ""
    return f"{where}: {what}{detail}. {fix.rstrip('.')}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word nearest to `word`, or an empty string."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
