"""A pipeline of three stages: read the next item and write the last one while the current one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Done = TypeVar("Done")
Written = TypeVar("Written")


def pipelined(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Read], Done],
    write: Callable[[Done], Written],
    *,
    read_ahead: bool = True,
) -> Iterator[Written]:
    """Yield ``write(work(read(item)))`` for each item, in order, with the stages running in parallel.

    `work` runs in the calling thread, `read` and `write` in one thread each. At most one item is in each stage.

    Args:
        items: What to process; consumed one ahead.
        read: First stage. Stages report failures in what they return: an exception ends the pipeline.
        work: Second stage.
        write: Third stage.
        read_ahead: Read the next item while the current one is worked on. Otherwise, it is read after that, while the
            current one is written, so that two items are never in memory during `work`.

    Yields:
        The result of `write` for each item.

    Examples:
        >>> list(pipelined("abc", str.upper, lambda text: text * 2, "<{}>".format))
        ['<AA>', '<BB>', '<CC>']
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def read_next() -> Future[Read] | None:
            for item in remaining:
                return reader.submit(read, item)
            return None

        writing: Future[Written] | None = None
        reading = read_next()
        try:
            while reading is not None:
                ready = reading.result()
                reading = read_next() if read_ahead else None
                done = work(ready)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, done)
                del ready, done  # may be large; the threads hold what they still need
                if not read_ahead:
                    reading = read_next()
            if writing is not None:
                yield writing.result()
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
