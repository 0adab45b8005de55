"""Progress of long operations: the callback that they accept, and the bar that the commands show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Callback ``(done, total, what)`` of every long operation.

`done` of `total` items are complete; `what` names the last one ("liver_001", "predicting liver_001") or the kind of
item ("window", "slice"). An exception that it raises ends the operation.
"""


class ProgressBar:
    """A progress bar on standard error; call it as `Progress`.

    Args:
        bar: The bar of tqdm.
        describe: Show the first word of `what` in front of the bar.
    """

    def __init__(self, bar: tqdm[Any], *, describe: bool = False) -> None:
        self._bar = bar
        self._describe = describe

    def __call__(self, done: int, total: int | None, what: str) -> None:
        """Show that `done` of `total` items are complete.

        Args:
            done: Completed items.
            total: All items, None if unknown; it may change from call to call.
            what: Name or kind of the last item.
        """
        if self._describe:
            self._bar.set_description(what.split()[0], refresh=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def write(self, text: str, *, file: TextIO | None = None) -> None:
        """Print a line above the bar.

        Args:
            text: The line.
            file: Stream; None prints to standard output.
        """
        stream = sys.stdout if file is None else file
        self._bar.write(text, file=stream)
        stream.flush()


@contextmanager
def progress_bar(
    unit: str = "case",
    *,
    description: str | None = None,
    total: int | None = None,
    initial: int = 0,
    describe: bool = False,
    nested: bool = False,
    hidden: bool = False,
) -> Iterator[ProgressBar]:
    """Show a progress bar where standard error is a terminal; a file or a pipe gets none.

    Args:
        unit: Kind of item that is counted.
        description: Text in front of the bar.
        total: Number of items, if known before the first call.
        initial: Items that were complete before this operation.
        describe: Replace the description by the first word of each call's `what`.
        nested: Show the bar below another one, and remove it at the end.
        hidden: Show no bar, as in processes other than the main one.

    Yields:
        The bar, which is a `Progress` callback.
    """
    from tqdm import tqdm

    with tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        file=sys.stderr,
        disable=True if hidden else None,
        leave=not nested,
        position=1 if nested else None,
    ) as bar:
        yield ProgressBar(bar, describe=describe)
