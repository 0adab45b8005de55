"""The progress bar that all commands show."""

from __future__ import annotations

import io
import re
import sys
import time
from types import SimpleNamespace

import pytest

from medseg.runtime.progress import Progress, progress_bar, progress_line


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def count(progress: Progress, total: int = 3) -> None:
    for done in range(1, total + 1):
        progress(done, total, f"predicting case_{done}")


def test_a_terminal_shows_description_count_and_unit(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("slice", description="preparing") as bar:
        count(bar)
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("preparing: 100%")
    assert "3/3" in last
    assert "slice" in last


def test_the_first_word_of_what_may_be_the_description(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(description="aggregating", describe=True) as bar:
        count(bar)
    assert stream.getvalue().split("\r")[-1].startswith("predicting: 100%")


def test_bar_resumes_at_the_given_count_and_restarts_for_the_next_item(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("window", total=10, initial=8) as bar:
        bar(10, 10, "window")
        bar(1, 4, "window")
    assert " 8/10" in stream.getvalue()
    assert " 1/4" in stream.getvalue().split("\r")[-1]


def test_a_file_a_pipe_and_other_ranks_get_no_bar(monkeypatch):
    stream, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar() as bar:
        count(bar)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(hidden=True) as bar:
        count(bar)
    assert stream.getvalue() == terminal.getvalue() == ""


def test_lines_go_to_standard_output_or_the_given_stream(monkeypatch, capsys):
    other = io.StringIO()
    with progress_bar(hidden=True) as bar:
        bar.write("done")
        bar.write("failed", file=other)
    assert capsys.readouterr().out == "done\n"
    assert other.getvalue() == "failed\n"


@pytest.mark.parametrize(
    ("done", "total", "initial", "expected"),
    [
        (30, 120, 0, "30 of 120 cases, 0:01:00, 0:03:00 left"),
        (30, 120, 20, "30 of 120 cases, 0:01:00, 0:09:00 left"),
        (0, 120, 0, "0 of 120 cases, 0:01:00"),
        (7, None, 0, "7 cases, 0:01:00"),
        (0, None, 0, "working for 0:01:00"),
        (1, 1, 0, "1 of 1 case, 0:01:00, 0:00:00 left"),
    ],
)
def test_lines_state_the_time_that_is_left(done, total, initial, expected):
    assert progress_line(done, total, "case", 60.0, initial) == expected


def test_a_file_or_a_pipe_gets_a_line_now_and_then(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("medseg.runtime.progress.LINE_EVERY", 0.02)
    with (
        progress_bar(total=4, description="predicting") as bar,
        progress_bar("window", within=bar) as inner,
    ):
        bar(1, 4, "case_1")
        inner(5, 9, "window")
        end = time.monotonic() + 60
        while stream.getvalue().count("\n") < 3 and time.monotonic() < end:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    form = r"predicting: [01] of 4 cases( and 5 of 9 windows)?, 0:00:\d\d(, 0:00:\d\d left)?"
    assert all(re.fullmatch(form, line) for line in lines)
    assert lines[-1].startswith("predicting: 1 of 4 cases and 5 of 9 windows")


def test_a_line_counts_the_parts_of_one_large_item(monkeypatch):
    with progress_bar(total=4, hidden=True) as bar, progress_bar("window", within=bar) as inner:
        inner(0, 9, "window")
        assert progress_line(0, 1, "case", 60.0, inner=bar.inner) == "0 of 1 case, 0:01:00"
        inner(3, 9, "window")
        line = progress_line(0, 1, "case", 60.0, inner=bar.inner)
        assert line == "0 of 1 case and 3 of 9 windows, 0:01:00, 0:02:00 left"
        line = progress_line(1, 2, "case", 80.0, inner=bar.inner)
        assert line == "1 of 2 cases and 3 of 9 windows, 0:01:20, 0:00:40 left"
        bar(1, 4, "case_1")
        assert inner.done == 0  # the windows of the next case


def test_a_line_names_what_is_done(monkeypatch):
    with progress_bar(description="measuring", describe=True, hidden=True) as bar:
        assert bar.description == "measuring"
        bar(2, 2, "fitting temperatures")
        assert bar.description == "fitting"


def test_the_time_left_of_a_second_series_does_not_count_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("medseg.runtime.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with progress_bar(total=10, initial=4, hidden=True) as bar:
        clock[0] = 1000.0
        bar(10, 10, "case_10")
        assert bar.began == 0
        bar(1, 5, "case_1")
        assert bar.began == 1000
        bar(2, 5, "case_2")
        assert bar.began == 1000
