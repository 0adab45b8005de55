"""Standard output and standard error as they reach a terminal: what files and headers contain cannot control it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from medseg.errors import shown_text

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


@contextmanager
def safe_output() -> Iterator[None]:
    """Return a context in which everything that is printed goes through a `SafeStream`."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(out), SafeStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
