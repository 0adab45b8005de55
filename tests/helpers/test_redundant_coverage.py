from __future__ import annotations

from tests.helpers.paths import ROOT
from tests.helpers.redundant_coverage import LIST, choose, unmeasured


def test_every_entry_of_the_list_exists() -> None:
    for entry in sorted(unmeasured()):
        file, _, test = entry.partition("::")
        exists = (ROOT / file).is_file() and f"def {test}" in (ROOT / file).read_text(encoding="utf-8")
        assert exists, f"{LIST}: {entry} does not exist. Remove it, or write its new name."


def branches(*numbers: int) -> set[tuple[int, int, int]]:
    return {(0, number, number + 1) for number in numbers}


def test_slow_tests_are_left_out_while_others_cover_the_same() -> None:
    tests = {
        "": branches(0),
        "a.py::slowest": branches(0, 1, 2),
        "a.py::needed_then": branches(1, 2, 3),
        "b.py::alone": branches(4),
        "c.py::fast": branches(1, 2),
        "d.py::whole_file": branches(3, 4),
    }
    seconds = {"a.py::slowest": 9.0, "a.py::needed_then": 8.0, "b.py::alone": 7.0, "d.py::whole_file": 3.0}
    assert choose(tests, seconds) == ["a.py", "b.py"]
    del tests["d.py::whole_file"]
    assert choose(tests, seconds) == ["a.py::slowest"]
