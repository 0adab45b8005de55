"""Names of files on Linux, macOS and Windows: which names all of them allow, and which names are one file for some of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

FORBIDDEN = '/\\:*?"<>|'
"""Characters that are not allowed in file names on some system."""

_JOINERS = "\u200c\u200d"  # needed by the scripts of Persian and of India
_DEVICES = frozenset(  # with any suffix, on Windows
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"]
)


def portable_name(name: str) -> str:
    """Return a name with everything replaced by ``_`` that file names cannot hold on some system.

    Args:
        name: The name, with or without a suffix.

    Returns:
        The name without characters that are not allowed, and without dots and spaces at its end; a name that Windows reserves
        for a device gets a ``_``. Empty if nothing remains.

    >>> portable_name("T2: axial. "), portable_name("con.nii.gz"), portable_name("...")
    ('T2_ axial', 'con_.nii.gz', '')
    """
    letters = "".join(
        "_" if letter in FORBIDDEN or _is_invisible(letter) else letter for letter in name
    ).rstrip(". ")
    if not _is_device(letters):
        return letters
    stem, dot, suffix = letters.partition(".")
    return f"{stem.rstrip()}_{dot}{suffix}"


def name_fault(name: str, *, on_windows: bool = True) -> str | None:
    """Return why a name cannot be that of a file.

    Args:
        name: The name of a file or folder, without the folders that contain it.
        on_windows: Whether the name has to be allowed on Windows, too. Other systems allow nearly all names, of which those with
            control or invisible characters and those that are not UTF-8 are still rejected.

    Returns:
        What is wrong, for messages that begin with "found"; None if the name is allowed.

    >>> name_fault("ct.nii.gz"), name_fault("aux.txt")
    (None, 'a name that Windows reserves for a device')
    """
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "bytes that are not UTF-8"
    if any(_is_invisible(letter) for letter in name):
        return "control or invisible characters"
    if not on_windows:
        return None
    forbidden = next((letter for letter in name if letter in FORBIDDEN), None)
    if forbidden is not None:
        return f"the character {forbidden}"
    if name.endswith((".", " ")):
        return "a dot or space at the end"
    return "a name that Windows reserves for a device" if _is_device(name) else None


def folded(name: str) -> str:
    """Return the form in which names are equal if some system takes them for the same file.

    Windows and macOS usually ignore case, and macOS ignores whether an accent is part of a letter or a character of its own.

    Args:
        name: A name or path.

    Returns:
        The name without differences of case, with each accent as part of its letter.

    >>> folded("Müller/CT") == folded("mu\u0308ller/ct")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def ignores_case(folder: Path) -> bool:
    """Return whether names that differ only in case are one file in this folder, which need not exist yet."""
    for existing in (folder.absolute(), *folder.absolute().parents):
        swapped = existing.with_name(existing.name.swapcase()) if existing.name else existing
        if existing.exists() and swapped.name != existing.name:
            return swapped.exists() and existing.samefile(swapped)
    return False


def _is_invisible(letter: str) -> bool:
    category = unicodedata.category(letter)
    return (category[0] == "C" and letter not in _JOINERS) or category in ("Zl", "Zp")


def _is_device(name: str) -> bool:
    return name.partition(".")[0].rstrip(" ").casefold() in _DEVICES
