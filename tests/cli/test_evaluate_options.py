"""Options of ``medseg evaluate`` about metrics, from the command line to tables, summary and page."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError
from medseg.evaluation.entry_points import evaluate
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.table import Table
from medseg.experiment.config import ExperimentConfig
from medseg.io.files import write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two cases with two labels; the second label is in neither map of the second case."""
    place = tmp_path_factory.mktemp("evaluated")
    grid = Grid.from_spacing((14, 12, 10), (1, 1, 2))
    for side, shift in (("predictions", 1), ("references", 0)):
        (place / side).mkdir()
        for case, values in (("a", (1, 2)), ("b", (1,))):
            data = np.zeros((1, *grid.shape), np.uint8)
            for value in values:
                start = 1 + 6 * (value - 1) + shift
                data[0, start : start + 4, 2:9, 2:8] = value
            write(Volume(data, grid, "label"), place / side / f"{case}.nii.gz")
    (place / "labels.tsv").write_text("value\tname\n0\tbackground\n1\torgan\n2\tlesion\n")
    return place


def evaluated(folders, out, *options: str) -> dict:
    sides = [str(folders / name) for name in ("predictions", "references")]
    assert main(["evaluate", *sides, "--labels", str(folders / "labels.tsv"), "-o", str(out), *options]) == 0
    return json.loads((out / "summary.json").read_text())


def test_metrics_on_request_are_in_the_table_the_files_and_the_page(folders, tmp_path, capsys):
    summary = evaluated(folders, tmp_path, "--metrics", "cldice, lesion_wise", "--report")
    printed = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    for title in ("clDice", "lesion-wise Dice", "lesion-wise HD95 mm"):
        assert title in printed
        assert f"<th>{title}</th>" in page
    assert "empty masks: both, not counted" in printed
    assert "empty masks: both, not counted" in page
    assert {"cldice", "lesion_dice", "lesion_hd95_mm"} <= summary["labels"]["organ"].keys()
    assert "boundary_iou" not in summary["labels"]["organ"]
    assert summary["labels"]["lesion"]["dice"]["n"] == 1


@pytest.mark.parametrize("write", ["write_summary", "write_tsv"])
def test_an_evaluation_that_was_stopped_between_its_tables_can_be_repeated(
    folders, tmp_path, monkeypatch, write
):
    with monkeypatch.context() as stopped:
        stopped.setattr(Table, write, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        sides = [str(folders / name) for name in ("predictions", "references")]
        assert main(["evaluate", *sides, "-o", str(tmp_path / "out")]) == 130
    assert evaluated(folders, tmp_path / "out")["labels"].keys() >= {"organ", "lesion"}


def test_cases_of_one_person_are_one_subject(folders, tmp_path, capsys):
    """By their names, because files have no table of subjects."""
    for side in ("predictions", "references"):
        (tmp_path / side).mkdir()
        for name in ("p1_a", "p1_b", "p2_a"):
            shutil.copy(folders / side / "a.nii.gz", tmp_path / side / f"{name}.nii.gz")
    sides = [str(tmp_path / side) for side in ("predictions", "references")]
    assert main(["evaluate", *sides, "-o", str(tmp_path / "out")]) == 0
    assert "3 cases of 2 subjects" in capsys.readouterr().out
    assert evaluate(*sides).subject_of == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2_a"}


def test_both_empty_and_the_widths_reach_the_figures(folders, tmp_path):
    narrow = evaluated(folders, tmp_path / "1", "--metrics", "boundary_iou", "--boundary-mm", "1")
    wide = evaluated(folders, tmp_path / "2", "--metrics", "boundary_iou", "--boundary-mm", "50")
    ours = [found["labels"]["organ"] for found in (narrow, wide)]
    assert ours[0]["boundary_iou"]["mean"] < ours[1]["boundary_iou"]["mean"]
    assert ours[1]["boundary_iou"]["mean"] == pytest.approx(ours[1]["iou"]["mean"])
    perfect = evaluated(folders, tmp_path / "3", "--both-empty", "perfect")
    lesion = perfect["labels"]["lesion"]
    assert lesion["dice"]["n"] == 2
    assert lesion["dice"]["mean"] == pytest.approx((1 + narrow["labels"]["lesion"]["dice"]["mean"]) / 2)
    assert lesion["hd95_mm"]["n"] == 2
    large = evaluated(folders, tmp_path / "4", "--metrics", "lesion_wise", "--lesion-min-mm3", "1000")
    assert large["labels"]["organ"]["lesion_dice"]["n"] == 0
    assert (large["lesion_min_mm3"], large["lesion_dilation"]) == (1000, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "cldise"], "Did you mean 'cldice'"),
        (["--metrics", "cldice", "--instances"], "--metrics: found it with --instances"),
        (["--boundary-mm", "-1"], "boundary_mm: found -1.0"),
        (["--matching-iou", "0.3"], "--matching-iou: found it without --instances"),
        (["--instances", "--size-bounds-mm3", "5,1"], "size_bounds_mm3: found 5, 1"),
    ],
)
def test_faulty_options_are_answered(folders, capsys, options, message):
    sides = [str(folders / name) for name in ("predictions", "references")]
    assert main(["evaluate", *sides, *options]) == 1
    assert message in capsys.readouterr().err


def test_an_experiment_has_the_same_options():
    chosen = {
        "metrics": ["all"],
        "both_empty": "perfect",
        "boundary_mm": 2.0,
        "lesion_dilation": 1,
        "lesion_min_mm3": 2,
    }
    config = ExperimentConfig.parse({"name": "lesions", "evaluate": {"tolerance_mm": 2, **chosen}})
    assert config.evaluate.options == MetricOptions(2.0, ("all",), "perfect", 2.0, 1, 2.0)
    assert ExperimentConfig.parse(config.to_plain()) == config
    with pytest.raises(ConfigError, match=r"evaluate\.metrics.*found 'cldise', expected surface_dice_area"):
        ExperimentConfig.parse({"name": "lesions", "evaluate": {"metrics": ["cldise"]}})


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """Three cases without a label table: labels 1 and 2, label 1, and no label at all."""
    place = tmp_path_factory.mktemp("unnamed")
    grid = Grid.from_spacing((8, 6, 5), (1, 1, 2))
    for side in ("predictions", "references"):
        (place / side).mkdir()
        for case, values in (("a", (1, 2)), ("b", (1,)), ("c", ())):
            data = np.zeros((1, *grid.shape), np.uint8)
            for value in values:
                data[0, 3 * value - 2 : 3 * value, 1:4, 1:4] = value
            write(Volume(data, grid, "label"), place / side / f"{case}.nii.gz")
    return place


@pytest.mark.parametrize(("rule", "counted"), [("leave_out", (2, 1)), ("perfect", (3, 3))])
def test_without_a_label_table_labels_are_those_of_all_cases(unnamed, tmp_path, rule, counted):
    sides = [str(unnamed / name) for name in ("predictions", "references")]
    metrics = ["--metrics", "all", "--both-empty", rule]
    assert main(["evaluate", *sides, "-o", str(tmp_path / "plain"), *metrics]) == 0
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert summary["cases"] == 3
    assert tuple(summary["labels"][name]["dice"]["n"] for name in ("label_1", "label_2")) == counted
    # The added rows are those that a label table leads to.
    table = tmp_path / "labels.tsv"
    table.write_text("value\tname\n0\tbackground\n1\tlabel_1\n2\tlabel_2\n")
    assert main(["evaluate", *sides, "-o", str(tmp_path / "named"), *metrics, "--labels", str(table)]) == 0
    texts = [(tmp_path / name / "cases.tsv").read_text() for name in ("plain", "named")]
    assert texts[0] == texts[1]
    options = {"metrics": ["all"], "both_empty": rule}
    evaluate(*sides, **options).write_tsv(tmp_path / "python.tsv")
    assert (tmp_path / "python.tsv").read_text() == texts[0]


def test_the_page_lists_cases_without_any_label(unnamed, tmp_path):
    sides = [str(unnamed / name) for name in ("predictions", "references")]
    assert main(["evaluate", *sides, "-o", str(tmp_path), "--report"]) == 0
    assert (tmp_path / "report.html").is_file()


def test_maps_without_any_label_need_a_label_table(unnamed, capsys):
    files = [str(unnamed / side / "c.nii.gz") for side in ("predictions", "references")]
    assert main(["evaluate", *files]) == 1
    message = capsys.readouterr().err
    assert "found no label in the predictions and references of 1 case" in message
    assert "--labels TSV" in message
    assert "listed above" not in message


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (["--boundary-mm", "2"], "boundary_iou"),
        (["--lesion-dilation", "0", "--metrics", "boundary_iou"], "boundary_iou,lesion_wise"),
        (["--lesion-min-mm3", "0"], "lesion_wise"),
    ],
)
def test_options_without_their_metric_are_refused(unnamed, capsys, words, metric):
    sides = [str(unnamed / name) for name in ("predictions", "references")]
    assert main(["evaluate", *sides, *words]) == 1
    message = capsys.readouterr().err
    assert f"{words[0]}: found it without the metric {metric.split(',')[-1]}, expected both" in message
    assert f"Add --metrics {metric}, or remove it" in message


def test_predictions_without_a_reference_are_named(unnamed, tmp_path, capsys):
    references = tmp_path / "references"
    references.mkdir()
    shutil.copy(unnamed / "references" / "a.nii.gz", references)
    predictions = tmp_path / "predictions"
    shutil.copytree(unnamed / "predictions", predictions)
    shutil.copy(predictions / "a.nii.gz", predictions / "a_uncertainty.nii.gz")
    assert main(["evaluate", str(predictions), str(references)]) == 0
    assert "2 predictions without a reference were left out: b, c\n" in capsys.readouterr().out
    (predictions / "c.nii.gz").unlink()
    assert main(["evaluate", str(predictions), str(references), "--components-of", "both"]) == 0
    assert "1 prediction without a reference was left out: b\n" in capsys.readouterr().out
    (predictions / "b.nii.gz").unlink()
    assert main(["evaluate", str(predictions), str(references)]) == 0
    assert "without a reference" not in capsys.readouterr().out


def test_the_page_of_an_earlier_evaluation_is_removed_and_other_files_are_kept(unnamed, tmp_path, capsys):
    files = [str(unnamed / side / "a.nii.gz") for side in ("predictions", "references")]
    page = tmp_path / "report.html"
    for options, exists in ((["--report"], True), (["--tolerance-mm", "3"], False), ([], False)):
        before = page.exists()
        assert main(["evaluate", *files, "-o", str(tmp_path), *options]) == 0
        assert page.exists() == exists
        assert (f"removed: {page}, the page of an earlier" in capsys.readouterr().out) == (
            before and not exists
        )
    page.write_text("<p>notes</p>")
    assert main(["evaluate", *files, "-o", str(tmp_path)]) == 0
    assert page.read_text() == "<p>notes</p>"


@pytest.mark.parametrize("options", [[], ["--instances"]])
def test_a_folder_that_cannot_be_written_is_named_before_cases_are_measured(
    folders, tmp_path, capsys, monkeypatch, options
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("medseg.evaluation.measured_cases.measured_cases", None)  # would fail
    sides = [str(folders / name) for name in ("predictions", "references")]
    assert main(["evaluate", *sides, *options, "-o", str(tmp_path / "file" / "out")]) == 1
    assert "out: cannot be written" in capsys.readouterr().err


def test_images_that_cannot_be_used_are_noticed_before_cases_are_measured(folders, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name in ("a.nii.gz", "a.nrrd"):
        (tmp_path / "images" / name).touch()
    sides = [str(folders / name) for name in ("predictions", "references")]
    output = tmp_path / "out"
    given = ["-o", str(output), "--report", "--images", str(tmp_path / "images")]
    assert main(["evaluate", *sides, *given]) == 1
    assert "found a.nii.gz and a.nrrd for case 'a'" in capsys.readouterr().err
    assert not output.exists()
