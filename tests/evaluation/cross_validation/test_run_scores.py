"""Tables of cross-validations that are damaged, of another version or written by somebody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import DataError
from medseg.evaluation.cross_validation.compare_runs import compare_cross_validations
from tests.evaluation.cross_validation.test_fold_table import dice_of, gathered
from tests.helpers.memory import memory_taken


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in "ab":
        gathered(folder, name, dice_of(5, cases=6))
        (folder / name / "fold_0").mkdir()
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "runs")


def table(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Return a change to the text of ``cases.tsv``."""

    def apply(folder: Path) -> None:
        path = folder / "cases.tsv"
        path.write_text(change(path.read_text()))

    return apply


def summary(**values: Any) -> Callable[[Path], None]:
    """Return a change to ``summary.json``; ``...`` removes a key."""

    def apply(folder: Path) -> None:
        path = folder / "summary.json"
        found = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return apply


def content(name: str, text: str | bytes) -> Callable[[Path], None]:
    return lambda folder: void(
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    )


def void(_: object) -> None:
    """Return nothing."""


def with_dice(value: str) -> Callable[[Path], None]:
    """Replace the Dice of the first row."""

    def change(text: str) -> str:
        header, first, *rest = text.splitlines(keepends=True)
        cells = first.split("\t")
        cells[header.split("\t").index("dice")] = value
        return "".join([header, "\t".join(cells), *rest])

    return table(change)


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "end of the last number lost": (table(lambda text: text[:-3]), "found no line end after the last row"),
    "cut within a row": (table(lambda text: text[: len(text) // 2]), r"cases\.tsv: line \d+: found \d+ cells"),
    "cut at a row": (table(lambda text: "".join(text.splitlines(keepends=True)[:-1])), "found no row of case 'case_05' and label 'spleen'"),
    "a row twice": (table(lambda text: text + text.splitlines()[-1] + "\n"), "line 14: found 'spleen' of 'case_05' twice"),
    "a row of another case": (table(lambda text: text + text.splitlines()[-1].replace("case_05", "x") + "\n"), "found a row of case 'x' .* expected none"),
    "no column": (table(lambda text: text.replace("dice", "dise")), r"cases\.tsv: found columns case,.* expected case, label, dice"),
    "empty": (content("cases.tsv", ""), "found an empty table"),
    "only zeros": (content("cases.tsv", bytes(900)), "found the control character"),
    "escape sequences": (table(lambda text: text.replace("liver", "li\x1b[31mver")), "found the control character"),
    "other bytes": (content("cases.tsv", b"case\t\xff\n"), "not UTF-8"),
    "one long cell": (content("cases.tsv", "case\tlabel\tdice\n" + "a" * 200_000 + "\tliver\t0.5\n"), "line 2: field larger than field limit"),
    **{f"Dice {value[:9]!r}": (with_dice(value), r"line 2: dice: found '.* expected a number from 0 to 1 or nan") for value in ("1.5", "-0.1", "inf", "1_0", "\u0663", "0x1", "", "high", "9" * 5000, "1e999")},
    "summary of zeros": (content("summary.json", bytes(50)), "damaged: "),
    "half a summary": (content("summary.json", '{"format": 1, "subjects": {'), "damaged: "),
    "nested summary": (content("summary.json", "[" * 100_000), "damaged: nested too deeply"),
    "huge number": (content("summary.json", "9" * 5000), "damaged: "),
    "list": (content("summary.json", "[1]"), "damaged: "),
    "no subjects": (summary(subjects=...), r"summary\.json: found no key 'subjects', expected it"),
    "no option": (summary(both_empty=...), r"found no key 'both_empty', expected it"),
    **{f"subjects {value!r}": (summary(subjects=value), "subjects: found .* expected the subject of each case") for value in ([], "x", 5, None, {"case_00": ["s"]})},
    "fewer subjects": (summary(subjects={"case_00": "s"}), "found a row of case 'case_01' .* because summary.json has no such case"),
    "a table that is a folder": (lambda folder: void(((folder / "cases.tsv").unlink(), (folder / "cases.tsv").mkdir())), "directory"),
    "no table": (lambda folder: (folder / "summary.json").unlink(), "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_with_its_remedy(
    runs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = DAMAGED[name]
    change(runs / "b" / "evaluation")
    with pytest.raises(DataError, match=message) as refused:
        compare_cross_validations([runs / "a", runs / "b"])
    assert str(refused.value).startswith(
        f"{runs / 'b' / 'evaluation'}: the table of the cross-validation is "
    )
    assert str(refused.value).endswith(f"Create it again with: medseg train --resume {runs / 'b'}.")
    assert len(str(refused.value)) < 1000
    words = ["compare", str(runs / "a"), str(runs / "b"), "--report", "-o", str(runs / "out")]
    assert main(words) == 1
    assert "\x1b" not in capsys.readouterr().err
    assert not (runs / "out").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "because a newer medseg wrote this file .* Update medseg"),
        (10**30, "because a newer medseg wrote this file"),
        (0, "found 0, expected 1. The file is damaged"),
        (True, "found True, expected 1. The file is damaged"),
        ("1", "found '1', expected 1. The file is damaged"),
        ([1] * 9999, "The file is damaged"),
    ],
)
def test_a_summary_of_another_format_is_refused(runs: Path, version: object, message: str) -> None:
    summary(format=version)(runs / "b" / "evaluation")
    with pytest.raises(DataError, match=message) as refused:
        compare_cross_validations([runs / "a", runs / "b"])
    assert len(str(refused.value)) < 400


MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_names_with_markup_stay_text_on_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        table(lambda text: text.replace("liver", MARKUP).replace("case_00", f"{MARKUP}&amp;"))(
            runs / name / "evaluation"
        )
        subjects = {f"case_0{n}": f"s{n}" for n in range(1, 6)} | {f"{MARKUP}&amp;": MARKUP}
        summary(subjects=subjects)(runs / name / "evaluation")
    table(lambda text: text.replace("0.5", "0.4").replace("0.6", "0.5"))(runs / "b" / "evaluation")
    moved = (runs / "b").rename(runs / "b<b>&\u202e")
    assert main(["compare", str(runs / "a"), str(moved), "--report", "-o", str(runs / "out")]) == 0
    page = (runs / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "alert(1)</script>" not in page
    assert "<b>&" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 2
    assert "&amp;amp;: " in page
    assert "\u202e" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_large_tables_are_compared_within_their_memory(tmp_path: Path) -> None:
    cases = 3000
    for name in "ab":
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True)
        values = np.random.default_rng(ord(name)).random(cases)
        lines = "".join(f"c{number}\tliver\t{value:.6g}\n" for number, value in enumerate(values))
        (folder / "cases.tsv").write_text(f"case\tlabel\tdice\n{lines}")
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "format": 1,
                    "subjects": {f"c{n}": f"s{n}" for n in range(cases)},
                    "both_empty": "leave_out",
                }
            )
        )
    found = []
    limit = 1.2e9  # 1.7 GB and more if all resamples were in memory
    taken = memory_taken(
        lambda: found.append(compare_cross_validations([tmp_path / "a", tmp_path / "b"])), limit
    )
    assert (found[0].cases, found[0].subjects) == (cases, cases)
    assert taken <= limit
