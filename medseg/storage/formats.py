"""Version numbers of medseg's file formats."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import DataError, MedsegError


def check_format(
    found: object, supported: int, path: str | Path, what: str, *, error: type[MedsegError] = DataError
) -> None:
    """Raise unless a file has the format that this medseg reads.

    Args:
        found: The value of ``format`` in the file; None if the file has none.
        supported: The format that this medseg writes and reads.
        path: The file, for the message.
        what: Kind of the file, such as "checkpoint" or "fingerprint".
        error: Class of the error.

    Raises:
        MedsegError: The number is missing, no positive integer, newer or older; of the class `error`.

    >>> check_format(1, 1, "run/splits.json", "splits")
    >>> check_format(3, 1, "run/splits.json", "splits")
    Traceback (most recent call last):
        ...
    medseg.errors.DataError: run/splits.json: format: found 3, expected 1, because a newer medseg wrote this file (splits). Update medseg.
    """
    if found == supported and type(found) is int:
        return
    if type(found) is not int or found < 1:
        raise error(
            f"{path}: format: found {found!r:.80}, expected {supported}. The file is damaged; create it again."
        )
    age, fix = ("a newer", "Update medseg") if found > supported else ("an older", "Create it again")
    raise error(
        f"{path}: format: found {found}, expected {supported}, because {age} medseg wrote this file ({what}). {fix}."
    )
