from __future__ import annotations

import os
import signal

import pytest

from medseg.runtime.process_map import WorkerEndedError, map_in_processes


def squared(number: int) -> int:
    return number * number


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_results_are_in_the_order_of_the_items(workers: int) -> None:
    seen: list[tuple[int, int, str]] = []
    found = map_in_processes(
        squared, [3, 1, 2], ["c", "a", "b"], workers, lambda *progress: seen.append(progress)
    )
    assert found == [9, 1, 4]
    assert [done for done, _, _ in seen] == [1, 2, 3]
    assert sorted(name for _, _, name in seen) == ["a", "b", "c"]


@pytest.mark.slow
def test_a_killed_process_is_an_error_that_names_what_was_not_finished() -> None:
    with pytest.raises(
        WorkerEndedError, match=r"workers: the system ended one of 2 processes at one of .*c"
    ) as caught:
        map_in_processes(killed, [0, 1, 2, 3], ["a", "b", "c", "d"], 2)
    assert "c" in caught.value.pending
    assert caught.value.exit_code == 4
