"""evaluate_instances: sources, classes, tables, files on disk."""

from __future__ import annotations

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError, DataError
from medseg.evaluation.instances.pairs import evaluate_instance_cases, evaluate_instances, instance_pairs
from medseg.io.files import read_labels, write
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (12, 10, 6)
TWO = Labels.from_names({"lesion": 2, "organ": 5})


def ids(*cubes: tuple[int, int]) -> Volume:
    """Cubes of 3 voxels at (start, start, 1), each with its id."""
    data = np.zeros((1, *SHAPE), np.uint16)
    for start, number in cubes:
        data[0, start : start + 3, start : start + 3, 1:4] = number
    return Volume(data, Grid.from_spacing(SHAPE, (1, 1, 2)), "label")


@pytest.fixture
def folders(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write(ids((0, 1), (6, 2)), references / "a.nii.gz")
    write(ids((0, 7)), predictions / "a.nii.gz")
    write(ids((3, 1)), references / "b.nii.gz")
    write(ids((3, 300), (7, 301)), predictions / "b.nii.gz")
    return predictions, references


def table(path, *rows):
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")


def test_folders_without_tables_are_of_one_class(folders):
    result = evaluate_instances(*folders)
    assert result.labels == ("instance",)
    assert result.cases == ("a", "b")
    both = result.pooled()["instance"]
    assert (both.references, both.predictions, both.tp, both.fn, both.fp) == (3, 3, 2, 1, 1)
    assert both.f1 == pytest.approx(2 / 3)
    assert both.sq == 1
    assert [row.metrics.f1 for row in result.rows] == pytest.approx([2 / 3, 2 / 3])
    assert result.per_case()["instance"]["f1"].n == 2
    assert result.mean()["f1"] == both.f1


def test_table_of_the_map_gives_classes_and_scores(folders):
    predictions, references = folders
    table(references / "a.tsv", ("id", "label_value"), (1, 2), (2, 5))
    table(references / "b.tsv", ("id", "label_value"), (1, 2))
    table(predictions / "a.tsv", ("id", "label_value", "score"), (7, 2, 0.3))
    table(predictions / "b.tsv", ("score", "label_value", "id"), (0.9, 2, 301), (0.2, 2, 300))
    result = evaluate_instances(predictions, references, TWO)
    assert result.labels == ("lesion", "organ")
    lesion, organ = result.pooled()["lesion"], result.pooled()["organ"]
    assert (lesion.tp, lesion.fp, organ.fn) == (2, 1, 1)
    assert lesion.ap == pytest.approx(2 / 3)  # the false one leads: precisions 0, 1/2, 2/3
    assert organ.ap == 0
    assert result.mean()["ap"] == pytest.approx(1 / 3)
    unnamed = evaluate_instances(predictions, references)
    assert unnamed.labels == ("label_2", "label_5")
    assert unnamed.pooled()["label_2"] == lesion


def test_absent_class_is_left_out_of_the_means(folders):
    labels = Labels.from_names({"instance": 1, "other": 2})
    pair = Instances.from_map(ids((0, 1)).data[0])
    result = evaluate_instances(pair, pair, labels)
    assert math.isnan(result.pooled()["other"].f1)
    assert result.mean()["pq"] == 1
    assert "other" in repr(result)
    assert "mean" in result._repr_html_()


def test_maps_without_classes_get_the_only_label(folders):
    result = evaluate_instances(*folders, Labels.from_names({"nucleus": 200}))
    assert [(row.label_value, row.label) for row in result.rows] == [(200, "nucleus")] * 2
    with pytest.raises(DataError, match=r"a: prediction: found an instance map without a table of classes"):
        evaluate_instances(*folders, TWO)


def test_connected_parts_of_label_maps():
    label = ids((0, 1), (6, 1))
    reference = ids((0, 4), (6, 9))
    assert evaluate_instances(label, reference).pooled()["instance"].tp == 0
    parts = evaluate_instances(label, reference, components_of="predictions")
    assert parts.pooled()["instance"].tp == 2
    both = evaluate_instances(ids((0, 5), (6, 2)), ids((0, 5), (6, 2)), TWO, components_of="both")
    assert [row.metrics.tp for row in both.rows] == [1, 1]


def test_orientation_may_differ_but_different_grids_raise():
    prediction, reference = ids((0, 1), (6, 2)), ids((0, 3), (6, 1))
    turned = evaluate_instances(prediction.reoriented("LPI"), reference)
    assert turned.pooled()["instance"].tp == 2
    far = Volume(reference.data, Grid.from_spacing(SHAPE, (1, 1, 3)), "label")
    with pytest.raises(DataError, match="not on the grid of its reference"):
        evaluate_instances(prediction, far)


def test_detection_from_an_iou():
    prediction, reference = ids((1, 1)), ids((0, 1))
    assert evaluate_instances(prediction, reference).rows[0].metrics.detected == 1
    strict = evaluate_instances(prediction, reference, detection_iou=0.5)
    assert strict.rows[0].metrics.detected == 0
    assert "met with IoU 0.5" in repr(strict)
    with pytest.raises(ConfigError, match=r"detection_iou: found 1\.5"):
        evaluate_instances(prediction, reference, detection_iou=1.5)


def test_incompatible_sources_raise(folders):
    with pytest.raises(DataError, match="found a folder and instances in memory"):
        evaluate_instances(folders[0], ids())
    three = Instances.from_masks(np.ones((1, *SHAPE), bool), classes=[3])
    with pytest.raises(DataError, match="found class 3, expected 1 to 2"):
        evaluate_instances(three, three, TWO)
    (folders[0] / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="predictions are missing for 1 of 2"):
        instance_pairs(*folders)


def test_cases_are_read_one_by_one(folders):
    rows = evaluate_instance_cases(instance_pairs(*folders))
    assert next(rows)[0].case == "a"
    (folders[0] / "b.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.nii\.gz"):
        next(rows)


def test_files_of_the_command(folders, tmp_path, capsys):
    predictions, references = map(str, folders)
    out = tmp_path / "out"
    assert main(["evaluate", predictions, references, "--instances", "-o", str(out)]) == 0
    assert "2 cases of 2 subjects, which are few, all instances together" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "cases.tsv").read_text().splitlines(), delimiter="\t"))
    assert [row["case"] for row in rows] == ["a", "b"]
    assert [row["tp"] for row in rows] == ["1", "1"]
    assert float(rows[0]["f1"]) == pytest.approx(2 / 3, abs=1e-6)
    assert rows[0]["precision"] == "1"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["labels"]["instance"]["pooled"]["fn"] == 1
    assert summary["labels"]["instance"]["per_case"]["pq"]["n"] == 2
    assert summary["mean"]["f1"] == pytest.approx(2 / 3)


def test_incompatible_flags_raise(folders, capsys):
    predictions, references = map(str, folders)
    assert main(["evaluate", predictions, references, "--detection-iou", "0.1"]) == 1
    assert "without --instances" in capsys.readouterr().err
    assert main(["evaluate", predictions, references, "--components-of", "both", "--tolerance-mm", "1"]) == 1
    assert "measures no label maps" in capsys.readouterr().err
    (folders[0] / "b.nii.gz").write_bytes(b"")
    assert main(["evaluate", predictions, references, "--instances"]) == 2
    told = capsys.readouterr()
    assert "b.nii.gz" in told.err
    assert "1 of 2 cases could not be evaluated" in told.out


@pytest.mark.parametrize("components_of", ["neither", "predictions", "both"])
def test_wrong_headers_can_be_decided_on(folders, tmp_path, components_of, capsys):
    predictions, references = folders
    expected = evaluate_instances(*folders, components_of=components_of).pooled()
    for path in references.glob("*.nii.gz"):  # the header of another image
        write(Volume(read_labels(path).data, Grid.from_spacing(SHAPE, (3, 3, 3)), "label"), path)
    with pytest.raises(DataError, match="not on the grid of its reference"):
        evaluate_instances(*folders, components_of=components_of)
    trusted = evaluate_instances(*folders, components_of=components_of, trust_label_array=True)
    assert str(trusted.pooled()) == str(expected)  # NaN equals NaN
    for path in references.glob("*.nii.gz"):
        image = nib.load(path)
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
        nib.save(image, path)
    with pytest.raises(DataError, match="sform_code"):
        evaluate_instances(*folders, components_of=components_of, trust_label_array=True)
    command = ["evaluate", str(predictions), str(references), "-o", str(tmp_path / "tables")]
    command += ["--instances"] if components_of == "neither" else ["--components-of", components_of]
    decided = ["--trust-label-array", "--orientation-from", "pixdim"]
    assert main(command) == 1
    assert main([*command, *decided]) == 0
    capsys.readouterr()
