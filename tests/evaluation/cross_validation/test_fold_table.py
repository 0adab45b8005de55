"""The table of a cross-validation, and several of them side by side, on made-up figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError, DataError
from medseg.evaluation.cross_validation.compare_runs import compare_cross_validations
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.label_maps.metrics import METRICS, LabelMetrics
from medseg.evaluation.label_maps.table import Table
from medseg.experiment.cross_validation.ensemble_candidates import compare_with_ensembles

NAMES = ("liver", "spleen")


def row(case: str, name: str, dice: float) -> LabelMetrics:
    rest = dict.fromkeys(METRICS, dice / 2)
    return LabelMetrics(
        **{**rest, "case": case, "label_value": NAMES.index(name) + 1, "label": name, "dice": dice}
    )


def table(dice: np.ndarray, folds: int = 3, per_subject: int = 1) -> FoldTable:
    """From Dice `(cases, labels)`: every so many cases in a fold, every so many of one subject."""
    cases = [f"case_{number:02}" for number in range(len(dice))]
    rows = [
        row(case, name, value)
        for case, line in zip(cases, dice, strict=True)
        for name, value in zip(NAMES, line, strict=True)
    ]
    return FoldTable(
        Table(
            tuple(rows),
            subjects={case: f"s{number // per_subject}" for number, case in enumerate(cases)},
        ),
        folds={case: number % folds for number, case in enumerate(cases)},
    )


def dice_of(seed: int, cases: int = 24, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.3, 0.9, (cases, 2)) + shift


def test_folds_are_summarised_separately_and_together():
    dice = dice_of(0)
    found = table(dice)
    expected = [dice[fold::3].mean() for fold in range(3)]
    assert [found.by_fold[fold]["dice"] for fold in range(3)] == pytest.approx(expected)
    assert found.over_folds("dice") == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    text = repr(found)
    assert f"{np.mean(expected):.3f} ± {np.std(expected, ddof=1):.3f}" in text
    assert f"(95 % interval {found.intervals['']['dice']}, 24 subjects)" in text
    assert f'<td style="text-align:right">{expected[0]:.3f}</td>' in found._repr_html_()


def test_interval_of_many_similar_cases_approaches_the_normal_distribution():
    dice = dice_of(1, cases=2000)
    found = table(dice).intervals
    for name, values in (("liver", dice[:, 0]), ("spleen", dice[:, 1]), ("", dice.mean(axis=1))):
        half = 1.96 * values.std() / 2000**0.5
        assert found[name]["dice"].low == pytest.approx(values.mean() - half, abs=0.15 * half)
        assert found[name]["dice"].high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_absent_label_is_null_and_infinite_distances_are_left_out(tmp_path):
    dice = dice_of(2, cases=6)
    dice[:, 1] = np.nan
    found = table(dice)
    found.write_summary(tmp_path / "summary.json")
    found.write_tsv(tmp_path / "cases.tsv")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["label_intervals"]["spleen"]["dice"] == {"low": None, "high": None}
    assert summary["foreground_mean_interval"]["dice"] == summary["label_intervals"]["liver"]["dice"]
    assert summary["folds"][1]["labels"]["spleen"]["dice"] is None
    assert summary["bootstrap"] == {"draws": 2000, "by": "subject", "percent": 95}
    # All that the summary of plain predictions tells is there, too.
    assert summary.items() >= found.table.summary().items()


def gathered(folder, name: str, dice: np.ndarray, **options: int) -> str:
    found = table(dice, **options)
    found.write_tsv(folder / name / "evaluation" / "cases.tsv")
    found.write_summary(folder / name / "evaluation" / "summary.json")
    return str(folder / name)


def test_best_run_is_reported_with_those_not_clearly_worse(tmp_path, capsys):
    dice = dice_of(3, per := 24)
    noise = np.random.default_rng(4).normal(0, 0.05, dice.shape)
    runs = [
        gathered(tmp_path, "worse", dice - 0.05 + 0.1 * noise),
        gathered(tmp_path, "best", dice),
        gathered(tmp_path, "alike", dice + noise - noise.mean() - 0.001),
    ]
    found = compare_cross_validations(runs)
    assert found.best.run == runs[1]
    worse, best, alike = found.runs
    assert best.difference == best.difference_interval.low == best.difference_interval.high == 0
    # Pair by pair the difference is far surer than each mean by itself.
    assert worse.difference_interval.high < -0.04
    assert worse.interval.high > best.interval.low
    assert 0 in alike.difference_interval
    assert alike.difference == pytest.approx(-0.001, abs=1e-5)
    assert main(["compare", *runs, "-o", str(tmp_path / "out"), "--report"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.html",
        "comparison.tsv",
        "comparison_labels.tsv",
    }
    assert main(["compare", *runs, "--report"]) == 1
    assert sum(one.share_first for one in found.runs) == 1
    assert best.by_label == ()
    assert [one.name for one in worse.by_label] == sorted(NAMES)
    assert all(one.holm < 0.01 and one.wins < one.losses for one in worse.by_label)
    told = capsys.readouterr().out
    assert (
        f"{per} cases of {per} subjects, which are few\nbest: {runs[1]}; not clearly better than {runs[2]}\n"
        in told
    )
    header, first, *_ = (tmp_path / "out" / "comparison.tsv").read_text().splitlines()
    assert header.split("\t")[:2] == ["run", "dice"]
    assert float(first.split("\t")[4]) == pytest.approx(worse.difference, abs=1e-5)
    (tmp_path / "file").write_text("")
    assert main(["compare", *runs, "-o", str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", *runs])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_newer_summary_is_refused(tmp_path):
    runs = [gathered(tmp_path, name, dice_of(5)) for name in "ab"]
    summary = tmp_path / "b" / "evaluation" / "summary.json"
    summary.write_text(summary.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="because a newer medseg wrote this file"):
        compare_cross_validations(runs)


def test_first_of_equal_runs_is_the_best_and_both_are_first_equally_often(tmp_path):
    runs = [gathered(tmp_path, name, dice_of(5)) for name in "ab"]
    found = compare_cross_validations([*runs, gathered(tmp_path, "worse", dice_of(5, shift=-0.2))])
    assert found.best.run == runs[0]
    assert [one.share_first for one in found.runs] == [0.5, 0.5, 0]


def test_the_page_of_an_earlier_comparison_is_removed(tmp_path, capsys):
    runs = [gathered(tmp_path, name, dice_of(5)) for name in "ab"]
    page = tmp_path / "out" / "comparison.html"
    for options, exists in ((["--report"], True), (["--metric", "iou"], False)):
        assert main(["compare", *runs, "-o", str(page.parent), *options]) == 0
        assert page.exists() == exists
    assert f"removed: {page}, the page of an earlier comparison" in capsys.readouterr().out


def evaluated_with(folder, name: str, **options: object) -> str:
    """Return a run whose summary has other options."""
    run = gathered(folder, name, dice_of(5))
    path = folder / name / "evaluation" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return run


@pytest.mark.parametrize(
    ("metric", "option", "value", "shown"),
    [
        ("surface_dice", "tolerance_mm", 20.0, "tolerance_mm: found 20, expected 1 as in"),
        ("dice", "both_empty", "perfect", "both_empty: found perfect, expected leave_out as in"),
    ],
)
def test_runs_evaluated_with_different_options_of_the_metric_are_refused(
    tmp_path, metric, option, value, shown
):
    one, other = gathered(tmp_path, "one", dice_of(5)), evaluated_with(tmp_path, "other", **{option: value})
    with pytest.raises(ConfigError, match=shown) as refused:
        compare_cross_validations([one, other], metric)
    message = str(refused.value)
    assert f"{other}/evaluation/summary.json: {option}" in message
    assert f"as in {one}/evaluation/summary.json" in message
    assert f"medseg evaluate RUN --{option.replace('_', '-')} VALUE" in message


def test_options_that_do_not_affect_the_metric_are_ignored_and_others_are_printed(tmp_path):
    runs = [gathered(tmp_path, "one", dice_of(5)), evaluated_with(tmp_path, "other", tolerance_mm=20.0)]
    assert "evaluated with both_empty leave_out" in repr(compare_cross_validations(runs, "dice"))
    same = [evaluated_with(tmp_path, name, tolerance_mm=2.5) for name in "ab"]
    found = compare_cross_validations(same, "surface_dice")
    assert "evaluated with both_empty leave_out, tolerance_mm 2.5" in repr(found)
    assert "tolerance_mm 2.5" in found._repr_html_()


def test_ensembles_of_runs_evaluated_by_another_rule_for_empty_masks_are_refused(tmp_path):
    runs = [evaluated_with(tmp_path, name, both_empty="perfect") for name in "ab"]
    with pytest.raises(ConfigError, match="both_empty: found perfect, expected leave_out"):
        compare_with_ensembles(runs)


def test_other_cases_and_missing_tables_raise(tmp_path):
    one, two = (gathered(tmp_path, str(cases), dice_of(6, cases=cases)) for cases in (6, 7))
    with pytest.raises(
        DataError, match=r"7: cases: found a difference to .*6 \(case_06\), expected the same"
    ):
        compare_cross_validations([one, two])
    with pytest.raises(DataError, match=r"found no cross-validation, expected one.*--all-folds"):
        compare_cross_validations([one, tmp_path / "absent"])
    with pytest.raises(ConfigError, match="found 1 run, expected at least two"):
        compare_cross_validations([one])


def test_runs_are_ranked_by_another_metric_of_which_less_is_better(tmp_path, capsys):
    runs = [gathered(tmp_path, "far", dice_of(7, shift=0.1)), gathered(tmp_path, "near", dice_of(7))]
    found = compare_cross_validations(runs, "hd95_mm")  # half of the Dice in these tables
    assert found.best.run == runs[1]
    far, near = found.runs
    assert far.difference == pytest.approx(0.05)
    assert near.share_first == 1
    assert all((one.wins, one.losses, one.effect) == (0, 24, -1) for one in far.by_label)
    assert main(["compare", *runs, "--metric", "hd95_mm", "-o", str(tmp_path / "out"), "--report"]) == 0
    assert "mean HD95 mm" in capsys.readouterr().out
    header = (tmp_path / "out" / "comparison.tsv").read_text().splitlines()[0]
    assert header.split("\t")[:2] == ["run", "hd95_mm"]
    assert "best mean HD95 mm" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_metric_that_was_not_computed_or_has_no_order_is_refused(tmp_path, capsys):
    runs = [gathered(tmp_path, name, dice_of(5)) for name in "ab"]
    with pytest.raises(DataError, match=r"found no column cldice.*medseg evaluate .*a --metrics cldice"):
        compare_cross_validations(runs, "cldice")
    for name in ("volume_ml", "dise"):
        with pytest.raises(ConfigError, match=f"metric: found '{name}', expected one of dice, iou"):
            compare_cross_validations(runs, name)
    assert main(["compare", *runs, "--metric", "iou", "--ensembles"]) == 1
    assert "which are ranked by Dice" in capsys.readouterr().err
