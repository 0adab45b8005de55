"""Progress of long operations: the callback that they accept, and the bar that the commands show."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

from medseg.runtime.formatting import pluralise

if TYPE_CHECKING:
    from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Callback ``(done, total, what)`` of every long operation.

`done` of `total` items are complete; `what` names the last one ("liver_001", "predicting liver_001") or the kind of
item ("window", "slice"). An exception that it raises ends the operation.
"""


# The time that is left is in the postfix.
_BAR_WITH_POSTFIX = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
LINE_EVERY = 30.0
"""Seconds between two lines about the progress where no bar can be shown."""


class ProgressBar:
    """A progress bar on standard error; call it as `Progress`.

    Args:
        bar: The bar of tqdm.
        describe: Show the first word of `what` in front of the bar.
        description: Text in front of the bar, at first.
        unit: Kind of item that is counted.

    Attributes:
        description: Text in front of the bar.
        unit: Kind of item that is counted.
        inner: The bar of the parts of one item; None if there is none.
        done: Completed items.
        total: All items, None if unknown.
        began: Time of the monotonic clock at which the items began; a smaller number of completed items begins others.
        left: Seconds that are left by the estimate of the caller at `reported`; None if it has none.
        reported: Time of the last call.
    """

    def __init__(
        self, bar: tqdm[Any], *, describe: bool = False, description: str = "", unit: str = "case"
    ) -> None:
        self._bar = bar
        self.description, self.unit = description, unit
        self.inner: ProgressBar | None = None
        self._describe = describe
        self.done: int = bar.n
        self.total: int | None = bar.total
        self.began = self.reported = time.monotonic()
        self.left: float | None = None

    def __call__(self, done: int, total: int | None, what: str, *, left: float | None = None) -> None:
        """Show that `done` of `total` items are complete.

        Args:
            done: Completed items.
            total: All items, None if unknown; it may change from call to call.
            what: Name or kind of the last item.
            left: Seconds that are left, if the caller knows better than by the mean time of the items.
        """
        if self._describe:
            self.description = what.split()[0]
            self._bar.set_description(self.description, refresh=False)
        self._bar.total = total
        if done < self.done:
            self.began = time.monotonic()
        self.done, self.total = done, total
        if self.inner is not None:
            self.inner.done = 0  # of the next item
        self.left, self.reported = left, time.monotonic()
        if left is not None:
            self._bar.bar_format = _BAR_WITH_POSTFIX
            self._bar.set_postfix_str(f"{timedelta(seconds=round(left))} left", refresh=False)
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
    within: ProgressBar | None = None,
    hidden: bool = False,
) -> Iterator[ProgressBar]:
    """Show a progress bar where standard error is a terminal.

    A file or a pipe gets a line every 30 seconds instead, with the time that is left. A bar within another one writes no lines;
    those of the outer bar name its parts.

    Args:
        unit: Kind of item that is counted.
        description: Text in front of the bar.
        total: Number of items, if known before the first call.
        initial: Items that were complete before this operation.
        describe: Replace the description by the first word of each call's `what`.
        within: Bar of which each item has the parts that this one counts; it is shown below that bar, and removed at the end.
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
        leave=within is None,
        position=None if within is None else 1,
    ) as bar:
        shown = ProgressBar(bar, describe=describe, description=description or "", unit=unit)
        if within is not None:
            within.inner = shown
        if hidden or within is not None or not bar.disable:
            yield shown
            return
        with _lines(shown, initial):
            yield shown


@contextmanager
def _lines(bar: ProgressBar, initial: int) -> Iterator[None]:
    """Write a line about the progress to standard error every now and then, also while one item takes long."""
    stop, began = threading.Event(), bar.began

    def write() -> None:
        while not stop.wait(LINE_EVERY):
            before = initial if bar.began == began else 0
            now = time.monotonic()
            left = None if bar.left is None else max(0.0, bar.left - (now - bar.reported))
            line = progress_line(bar.done, bar.total, bar.unit, now - bar.began, before, left, bar.inner)
            print(f"{bar.description}: {line}" if bar.description else line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def progress_line(
    done: int,
    total: int | None,
    unit: str,
    elapsed: float,
    initial: int = 0,
    left: float | None = None,
    inner: ProgressBar | None = None,
) -> str:
    """Return a line about the progress of a long operation.

    Args:
        done: Completed items.
        total: All items; None if unknown.
        unit: Kind of item that is counted.
        elapsed: Seconds since the operation began.
        initial: Items that were complete before it.
        left: Seconds that are left, if the caller knows; None for an estimate by the mean time of the items.
        inner: Progress within the present item, which counts as a part of it; None if it is not known.

    Returns:
        The items, the time since the beginning, and the time that is left if it is known.

    >>> progress_line(30, 120, "case", 60.0)
    '30 of 120 cases, 0:01:00, 0:03:00 left'
    """
    part = inner.done / inner.total if inner is not None and inner.total else 0.0
    if not total and not done:
        return f"working for {timedelta(seconds=round(elapsed))}"
    of_all = f"{done} of {pluralise(total, unit)}" if total else pluralise(done, unit)
    if inner is not None and part:
        of_all += f" and {inner.done} of {pluralise(inner.total or 0, inner.unit)}"
    words = [of_all, str(timedelta(seconds=round(elapsed)))]
    if left is None and total and done + part > initial:
        left = max(elapsed / (done + part - initial) * (total - done - part), 0.0)
    if left is not None:
        words.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(words)
