"""The three stages of a pipeline."""

from __future__ import annotations

import threading

import pytest

from medseg.inference.pipeline import pipelined


def recorded(read_ahead: bool) -> list[str]:
    """The order in which three items pass the stages; `work` waits for what must run next to it."""
    events: list[str] = []
    read_next = threading.Event()

    def read(item: int) -> int:
        events.append(f"read {item}")
        if item == 2:
            read_next.set()
        return item

    def work(item: int) -> int:
        if item == 1 and read_ahead:
            assert read_next.wait(60)
        events.append(f"work {item}")
        return item

    assert list(pipelined([1, 2, 3], read, work, lambda item: item * 10, read_ahead=read_ahead)) == [
        10,
        20,
        30,
    ]
    return events


def test_the_next_item_is_read_while_one_is_worked_on():
    events = recorded(read_ahead=True)
    assert events.index("read 2") < events.index("work 1")


def test_without_reading_ahead_only_one_item_is_in_memory():
    assert recorded(read_ahead=False) == ["read 1", "work 1", "read 2", "work 2", "read 3", "work 3"]


def test_empty_input_gives_no_results_and_one_item_is_read_ahead():
    assert list(pipelined([], str, str, str)) == []
    taken: list[int] = []

    def items():
        for item in range(5):
            taken.append(item)
            yield item

    results = pipelined(items(), str, str, str)
    assert next(results) == "0"
    assert taken == [0, 1, 2]
    results.close()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_exception_ends_the_pipeline(stage):
    def fails(item):
        raise RuntimeError("broken")

    stages = [str, str, str]
    stages[stage] = fails
    with pytest.raises(RuntimeError, match="broken"):
        list(pipelined(range(3), *stages))
