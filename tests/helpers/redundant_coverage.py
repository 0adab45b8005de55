"""The list of tests whose coverage is not measured, because other tests cover the same lines and branches.

    python -m tests.helpers.redundant_coverage

runs all tests, records which of them run which branches, and writes ``tests/unmeasured.txt``. Measuring the coverage makes
Python code half as fast again, so the suite leaves it out for the slowest tests that add nothing to it. The tests of a file or a
test with all its parameters are on the list if the remaining ones cover everything that they cover, beginning with the slowest.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers.paths import ROOT

LIST = ROOT / "tests" / "unmeasured.txt"
SLOW = {"file": 5.0, "test": 1.5}  # seconds; faster ones are always measured
Branch = tuple[int, int, int]


def unmeasured() -> frozenset[str]:
    """Return the files and tests on the list."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def is_unmeasured(item: pytest.Item, listed: frozenset[str]) -> bool:
    """Return whether the file or the test of an item is on the list."""
    test = _test(item)
    return test in listed or test.partition("::")[0] in listed


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Record the branches of a test under its name, unless it measures other processes, whose branches have no name."""
    import coverage

    measured = coverage.Coverage.current()
    named = measured is not None and "measured_children" not in getattr(item, "fixturenames", ())
    if named:
        measured.switch_context(_test(item))
    try:
        return (yield)
    finally:
        if named:
            measured.switch_context("")


def _branches(data: Path) -> dict[str, set[Branch]]:
    """Return the branches that each test runs; those of fixtures, imports and processes are named ''."""
    found: dict[str, set[Branch]] = defaultdict(set)
    with sqlite3.connect(data) as base:
        names = dict(base.execute("select id, context from context"))
        for context, file, start, end in base.execute("select context_id, file_id, fromno, tono from arc"):
            found[names[context]].add((file, start, end))
    return found


def _seconds(report: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        path = case.get("classname", "").replace(".", "/") + ".py"
        found[f"{path}::{case.get('name', '').partition('[')[0]}"] += float(case.get("time", 0))
    return found


def redundant(groups: Mapping[str, set[Branch]], always: set[Branch], order: Iterable[str]) -> list[str]:
    """Return the groups that can be left out, one after the other, while the remaining ones cover the same branches.

    Args:
        groups: Branches of each group of tests.
        always: Branches that are covered in any case.
        order: Names of the groups that may be left out, in the order in which it is tried.
    """
    times = Counter(always)
    for branches in groups.values():
        times.update(branches)
    left_out = []
    for name in order:
        if all(times[branch] > 1 for branch in groups[name]):
            times.subtract(groups[name])
            left_out.append(name)
    return left_out


def choose(tests: Mapping[str, set[Branch]], seconds: Mapping[str, float]) -> list[str]:
    """Return the files and tests whose coverage is redundant, in the order of their names.

    Args:
        tests: Branches of each test; those under '' are always covered.
        seconds: Seconds of each test.
    """
    always = tests.get("", set())
    named = {test: branches for test, branches in tests.items() if test}
    files: dict[str, set[Branch]] = defaultdict(set)
    file_seconds: Counter[str] = Counter()
    for test, branches in named.items():
        files[test.partition("::")[0]] |= branches
        file_seconds[test.partition("::")[0]] += seconds.get(test, 0.0)
    slowest = [file for file, taken in file_seconds.most_common() if taken > SLOW["file"]]
    whole = redundant(files, always, slowest)
    rest = {test: branches for test, branches in named.items() if test.partition("::")[0] not in whole}
    order = sorted(
        (test for test in rest if seconds.get(test, 0.0) > SLOW["test"]), key=lambda test: -seconds[test]
    )
    return sorted(whole + redundant(rest, always, order))


def main() -> int:
    """Run all tests and write the list."""
    head = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    LIST.write_text("\n".join(head) + "\n", encoding="utf-8")  # everything is measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["-p", "tests.helpers.redundant_coverage", "--cov", "--cov-report="]
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={folder / 'tests.xml'}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return code
        chosen = choose(_branches(ROOT / ".coverage"), _seconds(folder / "tests.xml"))
    LIST.write_text("\n".join([*head, *chosen]) + "\n", encoding="utf-8")
    print(f"{len(chosen)} files and tests in {LIST.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
