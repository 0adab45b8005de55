from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.evaluation.instances.instance_options import InstanceOptions
from medseg.evaluation.instances.pairs import InstancePair, evaluate_instance_cases, instance_pairs
from medseg.evaluation.instances.table import InstanceTable
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.report.case_files import cases_of_instance_pairs, images_of_folder
from medseg.report.evaluation_report import ReportContext
from medseg.report.instance_report import write_instance_report
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.report.test_evaluation_report import EVIL, cells

GRID = Grid.from_spacing((12, 10, 6), (1, 1, 2))
BOXES = [(slice(0, 3), slice(0, 3)), (slice(5, 8), slice(0, 3)), (slice(0, 3), slice(6, 9))]


def ids(boxes: list[int], first: int = 1) -> Volume:
    data = np.zeros((1, *GRID.shape), np.uint8)
    for number, place in enumerate(boxes, start=first):
        data[0, *BOXES[place], 1:4] = number
    return Volume(data, GRID, "label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases: all found, one missed and one false positive, and none predicted; with the report."""
    root = tmp_path_factory.mktemp("instances")
    for name in ("pred", "ref", "images"):
        (root / name).mkdir()
    cases = {"good": ([0, 1, 2], [0, 1, 2]), "mixed": ([0, 2], [0, 1]), "missed": ([], [1])}
    for case, (predicted, expected) in cases.items():
        random = np.random.default_rng(0)
        medseg.write(
            Volume(random.normal(size=(1, *GRID.shape)).astype(np.float32), GRID),
            root / "images" / f"{case}.nii.gz",
        )
        medseg.write(ids(predicted), root / "pred" / f"{case}.nii.gz")
        medseg.write(ids(expected, 7), root / "ref" / f"{case}.nii.gz")
    arguments = [
        str(root / "pred"),
        str(root / "ref"),
        "--instances",
        "--size-bounds-mm3",
        "10,100",
        "--report",
    ]
    assert main(["evaluate", *arguments, "--images", str(root / "images"), "-o", str(root / "out")]) == 0
    return root


def test_every_figure_is_that_of_the_summary_and_the_tables(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    pooled = json.loads((folder / "out" / "summary.json").read_text())["labels"]["instance"]["pooled"]
    header, row = cells(page, "labels")
    found = dict(zip(header, row, strict=True))
    for title, metric in (("references", "references"), ("tp", "tp"), ("fn", "fn"), ("fp", "fp")):
        assert found[title] == str(pooled[metric])
    for title, metric in (
        ("F1", "f1"),
        ("PQ", "pq"),
        ("sensitivity", "sensitivity"),
        ("AP50", "ap50"),
        ("AJI", "aji"),
    ):
        assert found[title] == f"{pooled[metric]:.3f}"
    sizes = [line.split("\t") for line in (folder / "out" / "sizes.tsv").read_text().splitlines()]
    column = sizes[0].index("references")
    _, *rows = cells(page, "sizes")
    for row in rows:
        assert int(row[2]) == sum(int(line[column]) for line in sizes[1:] if line[3] == row[1])


def test_the_case_with_the_lowest_f1_comes_first(folder: Path) -> None:
    _, *rows = cells((folder / "out" / "report.html").read_text(encoding="utf-8"), "cases")
    assert [row[1] for row in rows] == ["missed", "mixed", "good"]
    assert [row[6] for row in rows] == ["0.000", "0.500", "1.000"]


def test_the_viewer_shows_pairs_false_positives_and_missed_instances(folder: Path) -> None:
    pairs = instance_pairs(folder / "pred", folder / "ref")
    images = images_of_folder(folder / "images")
    by_id = {case.id: case for case in cases_of_instance_pairs(pairs, images, None, 0.5)}
    assert by_id["mixed"].open is not None
    shown = by_id["mixed"].open()
    predictions, references = (shown.maps[name].data[0] for name in ("predictions", "references"))
    assert [int(predictions[*box, 1:4].max()) for box in BOXES] == [1, 0, 2]
    assert [int(references[*box, 1:4].max()) for box in BOXES] == [1, 3, 0]
    assert shown.labels is not None
    assert [label.name for label in shown.labels] == ["background", "paired", "false positive", "missed"]
    assert cases_of_instance_pairs(pairs, {}, None, 0.5)[0].open is None


def test_instances_of_different_labels_are_no_pair(tmp_path: Path) -> None:
    image = Volume(np.zeros((1, *GRID.shape), np.float32), GRID)
    medseg.write(image, tmp_path / "a.nii.gz")
    found = ids([0, 1]).data[0]
    sides = [Instances.from_map(found, classes) for classes in ({1: 1, 2: 2}, {1: 1, 2: 1})]
    pair = InstancePair("a", *sides)
    names = Labels.from_names({"nodule": 1, "cyst": 2})
    (case,) = cases_of_instance_pairs([pair], images_of_folder(tmp_path), names, 0.5)
    assert case.open is not None
    maps = case.open().maps
    assert [int(maps["predictions"].data[0][*box, 2].max()) for box in BOXES[:2]] == [1, 2]
    assert [int(maps["references"].data[0][*box, 2].max()) for box in BOXES[:2]] == [1, 3]


def test_the_page_says_where_the_figures_come_from(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    origin = {row[0]: row[1] for row in cells(page, "origin")}
    assert origin["predictions"].endswith("/pred")
    assert (origin["matching iou"], origin["size bounds mm3"]) == ("0.5", "10, 100")
    assert origin["medseg"] == medseg.__version__
    assert str(folder) not in page


def test_names_cannot_become_code_and_several_labels_have_a_mean(tmp_path: Path) -> None:
    sides = [Instances.from_map(ids(boxes).data[0], {1: 1, 2: 2}) for boxes in ([0, 1], [0, 1])]
    names = Labels.from_names({EVIL: 1, "cyst": 2})
    options = InstanceOptions()
    (rows,) = evaluate_instance_cases([InstancePair(EVIL, *sides)], names, options)
    write_instance_report(tmp_path / "a.html", InstanceTable(tuple(rows), options), [], ReportContext(EVIL))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert cells(page, "labels")[-1][0] == "mean"
