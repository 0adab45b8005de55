"""What the catalogue promises for an entry, and what the product answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["refused", "warned", "read", "continued"]


@dataclass(frozen=True)
class Promise:
    """One line of the table of expectations; several lines with the same number are variants of one entry.

    Attributes:
        number: Number of the entry.
        case: The bad input or fault.
        kind: ``refused``: an error names everything. ``warned``: work goes on, and a message names everything. ``read``: the
            input is used without any message. ``continued``: a fault is survived; `parts` must be in the output.
        field: Pattern of the header field, key or property that the answer names.
        found: Pattern of the value that it names as found.
        expected: Pattern of the value that it names as expected.
        remedy: Pattern of what it advises.
        slow: Whether the entry takes more than about two seconds.
        needs_gpu: Whether it can only be created on a GPU.
    """

    number: int
    case: str
    kind: Kind
    field: str = ""
    found: str = ""
    expected: str = ""
    remedy: str = ""
    slow: bool = False
    needs_gpu: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The patterns that one message must contain."""
        return tuple(part for part in (self.field, self.found, self.expected, self.remedy) if part)


@dataclass(frozen=True)
class Answer:
    """What one command did.

    Attributes:
        code: Exit code.
        text: Standard output and standard error.
        file: Name of the file that a message must contain; empty where no file is concerned.
    """

    code: int
    text: str
    file: str = ""


Recipe = Callable[["Bench"], "Answer | list[Answer]"]  # type: ignore[name-defined]  # noqa: F821
RECIPES: dict[tuple[int, int], Recipe] = {}
"""Function that creates an entry, gives it to the product and returns the answers, by number and variant."""


def recipe(number: int, variant: int = 0) -> Callable[[Recipe], Recipe]:
    """Register a function as the recipe of an entry.

    Args:
        number: Number of the entry.
        variant: Position of the line among those with this number.

    Returns:
        A decorator.
    """

    def register(function: Recipe) -> Recipe:
        if (number, variant) in RECIPES:
            raise ValueError(f"entry {number}, variant {variant} has two recipes")
        RECIPES[number, variant] = function
        return function

    return register


class Broken(AssertionError):
    """An answer that does not keep the promise."""


def require_kept(promise: Promise, answer: Answer) -> None:
    """Raise `Broken` unless an answer keeps a promise.

    Args:
        promise: The line of the table.
        answer: What one command did.
    """
    text = answer.text
    if "Traceback (most recent call last)" in text:
        raise Broken(f"traceback:\n{text}")
    if promise.kind == "refused" and answer.code == 0:
        raise Broken(f"not refused (exit code 0):\n{text}")
    if promise.kind in ("warned", "read") and answer.code != 0:
        raise Broken(f"refused (exit code {answer.code}):\n{text}")
    messages = [block for block in _blocks(text) if _is_message(block)]
    if promise.kind == "read" and not promise.parts:
        if messages:
            raise Broken("a message, expected none:\n" + "\n".join(messages))
        return
    patterns = [*promise.parts, *([re.escape(answer.file)] if answer.file else [])]
    blocks = messages if promise.kind in ("refused", "warned") else [text]
    best = max(blocks, key=lambda block: sum(bool(re.search(p, block)) for p in patterns), default="")
    missing = [pattern for pattern in patterns if not re.search(pattern, best)]
    if missing:
        raise Broken(f"no message with {missing}:\n{text}")


def _blocks(text: str) -> list[str]:
    """Return the lines of a text; a message that ends with a colon includes the list that follows, and its remedy."""
    blocks: list[str] = []
    listing = False
    for line in text.splitlines():
        if listing and blocks:
            blocks[-1] += "\n" + line
            listing = line.startswith(" ")
        else:
            blocks.append(line)
            listing = line.endswith(":")
    return blocks


def _is_message(block: str) -> bool:
    """Return whether a text reports something, rather than a result."""
    return block.startswith(("warning", "error", "note", "medseg ")) or any(
        word in block for word in ("found ", "missing", "cannot be", "no such file")
    )


def joined(folder: Path) -> str:
    """Return the names of the hidden temporary files below a folder; empty if a command left none."""
    return ", ".join(str(path) for path in folder.rglob(".*") if re.match(r"\.\d+-", path.name))
