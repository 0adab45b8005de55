"""Standard output and standard error as they reach a terminal: what files and headers contain cannot control it."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_LINE_BREAKS = "\n\t"
_JOINERS = "\u200c\u200d"  # part of ordinary words in several scripts
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What a progress bar writes to move between its lines.
_CURSOR = re.compile(r"(?:[\r\n]|\x1b\[A)*")


class SafeStream:
    """A text stream that shows control characters instead of sending them.

    Names of files, cases and labels come from others: an escape sequence in one could rewrite the screen, a change of
    direction could disguise a name, and a character outside the stream's encoding would end the program.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text and return its length."""
        shown = text if _CURSOR.fullmatch(text) else shown_text(text)
        try:
            self._stream.write(shown)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def shown_text(text: str) -> str:
    r"""Return text with control characters, changes of direction and invalid characters written as escapes.

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


@contextmanager
def safe_output() -> Iterator[None]:
    """Return a context in which everything that is printed goes through a `SafeStream`."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(out), SafeStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
