from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.check.check_paths import check_paths
from medseg.check.codes import KINDS
from medseg.check.finding import Finding
from medseg.cli.main import main
from tests.helpers.planted_faults import CASES, Planted, plant, write_clean


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    root = write_clean(tmp_path_factory.mktemp("broken") / "set")
    return root, plant(root)


@pytest.fixture(scope="module")
def findings(broken: tuple[Path, list[Planted]]) -> tuple[Finding, ...]:
    return check_paths([broken[0]]).findings


def test_a_clean_dataset_has_no_finding(clean: Path) -> None:
    report = check_paths([clean])
    assert report.findings == ()
    assert len(report.cases) == CASES


def test_each_planted_fault_is_found_and_nothing_else(
    broken: tuple[Path, list[Planted]], findings: tuple[Finding, ...]
) -> None:
    planted = broken[1]
    assert len({one.code for one in planted}) >= 25
    assert sorted((one.code, one.file, one.field) for one in findings) == sorted(
        (one.code, one.file, one.field) for one in planted
    )


def test_each_finding_states_what_was_found_and_expected_and_the_remedy(
    broken: tuple[Path, list[Planted]], findings: tuple[Finding, ...]
) -> None:
    by_place = {(one.code, one.file): one for one in findings}
    for one in broken[1]:
        found = by_place[one.code, one.file]
        assert one.found in found.found, one.code
        assert one.expected in found.expected, one.code
        assert one.remedy in found.remedy, one.code


def test_the_command_prints_the_worst_first_and_ends_with_2(
    broken: tuple[Path, list[Planted]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = broken
    assert main(["check", str(root)]) == 2
    first, *lines = capsys.readouterr().out.splitlines()
    errors = sum(KINDS[one.code].severity == "error" for one in planted)
    assert first.startswith(f"{root}: {errors} errors, ")
    severities = [line.split()[0] for line in lines]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_the_command_ends_with_0_without_errors(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(clean)]) == 0
    counts = f"{clean}: 0 errors, 0 warnings, 0 notes in {CASES} cases\n"
    assert capsys.readouterr().out == f"{counts}next: medseg plan {clean} -o plan.yaml\n"


def test_json_lists_every_field(
    broken: tuple[Path, list[Planted]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = broken
    assert main(["check", str(root), "--json", "-"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == 1
    assert sum(report["counts"].values()) == len(report["findings"]) == len(planted)
    for one in report["findings"]:
        assert all(one[key] for key in ("code", "severity", "file", "field", "found", "expected", "remedy"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_several_processes_find_the_same(
    broken: tuple[Path, list[Planted]], findings: tuple[Finding, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(broken[0]), "--workers", "2", "--json", "-"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(one["code"], one["file"]) for one in found] == [(one.code, one.file) for one in findings]


def test_a_path_that_does_not_exist_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "nothing")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
