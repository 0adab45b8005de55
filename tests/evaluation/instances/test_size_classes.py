from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError
from medseg.evaluation.instances.instance_options import InstanceOptions
from medseg.evaluation.instances.metrics import match_instances
from medseg.evaluation.instances.pairs import evaluate_instances
from medseg.evaluation.instances.size_classes import COUNTS, SizeCounts, pool_sizes, size_names
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.storage.tsv import read_tsv
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def lesions(*sides: int) -> np.ndarray:
    """A map of cubes with these sides, one after the other; a side of 0 leaves the place empty."""
    ids = np.zeros((12 * len(sides), 10, 10), np.uint8)
    for number, side in enumerate(sides):
        start = 12 * number + 1
        ids[start : start + side, 1 : 1 + side, 1 : 1 + side] = 1
    return ids


def counted(prediction: np.ndarray, reference: np.ndarray, *bounds: float, voxel_mm3: float = 1.0):
    pair = (Instances.from_components(prediction), Instances.from_components(reference))
    return match_instances(*pair, InstanceOptions(size_bounds_mm3=bounds), voxel_mm3=voxel_mm3).by_size


def test_a_missed_lesion_counts_in_its_own_class() -> None:
    small, large = counted(lesions(0, 6), lesions(2, 6), 50)
    assert (small.references, small.fn, small.tp) == (1, 1, 0)
    assert (large.references, large.fn, large.tp) == (1, 0, 1)
    assert (small.sensitivity, large.sensitivity) == (0, 1)
    assert (small.f1, large.f1) == (0, 1)
    assert math.isnan(small.precision)


def test_a_match_belongs_to_the_class_of_its_reference() -> None:
    """A reference of 64 voxels that is predicted with 48."""
    reference = lesions(4)
    prediction = reference.copy()
    prediction[4] = 0
    small, large = counted(prediction, reference, 50)
    assert (small.predictions, small.fp, small.tp) == (1, 0, 0)
    assert (large.references, large.tp, large.f1) == (1, 1, 1)
    assert small.precision == 1


def test_a_false_positive_counts_by_its_own_size() -> None:
    small, middle, large = counted(lesions(2, 6), lesions(0, 6), 10, 100)
    assert (small.fp, small.false_detections, small.precision) == (1, 1, 0)
    assert middle == SizeCounts()
    assert (large.fp, large.precision) == (0, 1)


def test_sizes_are_in_mm3_and_a_bound_belongs_to_the_class_above() -> None:
    assert [one.references for one in counted(lesions(2), lesions(2), 8)] == [0, 1]
    assert [one.references for one in counted(lesions(2), lesions(2), 8.01)] == [1, 0]
    assert [one.references for one in counted(lesions(2), lesions(2), 8.01, voxel_mm3=2.0)] == [0, 1]


def test_classes_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    prediction, reference = (
        Instances.from_components((rng.random((20, 20, 20)) < 0.05).astype(np.uint8)) for _ in range(2)
    )
    found = match_instances(prediction, reference, InstanceOptions(size_bounds_mm3=(2, 3)))
    metrics = found.metrics()
    for name in COUNTS:
        assert sum(getattr(one, name) for one in found.by_size) == getattr(metrics, name)
    assert pool_sizes([found.by_size, found.by_size])[0].references == 2 * found.by_size[0].references


def test_table_and_files_of_the_command(tmp_path, capsys) -> None:
    grid = Grid.from_spacing((24, 10, 10), (1, 1, 0.5))
    for name, ids in (("prediction", lesions(0, 6)), ("reference", lesions(2, 6))):
        (tmp_path / name).mkdir()
        write(Volume(ids[None], grid, "label"), tmp_path / name / "a.nii.gz")
    folders = [str(tmp_path / name) for name in ("prediction", "reference")]
    options = ["--components-of", "both", "--size-bounds-mm3", "10,50", "-o", str(tmp_path / "out")]
    assert main(["evaluate", *folders, *options]) == 0
    printed = capsys.readouterr().out
    assert "below 10 mm³" in printed
    assert "10 to 50 mm³" in printed
    rows = [row.cells for row in read_tsv(tmp_path / "out" / "sizes.tsv").rows]
    assert [(row["size"], row["references"], row["tp"]) for row in rows] == [
        ("below 10 mm³", "1", "0"),  # 8 voxels of half a mm³
        ("10 to 50 mm³", "0", "0"),
        ("from 50 mm³", "1", "1"),
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["size_bounds_mm3"] == [10, 50]
    assert summary["matching_iou"] == 0.5
    assert summary["labels"]["instance"]["by_size"]["below 10 mm³"]["sensitivity"] == 0
    assert summary["labels"]["instance"]["by_size"]["10 to 50 mm³"]["sensitivity"] is None


def test_names_and_faulty_bounds() -> None:
    assert size_names([1.5]) == ("below 1.5 mm³", "from 1.5 mm³")
    assert size_names([]) == ()
    some = Instances.from_map(np.ones((2, 2), np.uint8))
    for bounds in ((5, 5), (5, 1), (0,), (-1, 2), (math.nan,), (math.inf,)):
        with pytest.raises(ConfigError, match="size_bounds_mm3"):
            evaluate_instances(some, some, size_bounds_mm3=bounds)
    with pytest.raises(ConfigError, match="matching_iou"):
        evaluate_instances(some, some, matching_iou=1.0)
