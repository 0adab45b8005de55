"""Instance maps and the tables beside them."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.io.companions.instance_files import read_instances, write_instances
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"a": 3, "b": 8})
IMAGE = Volume(np.zeros((1, 5, 4, 3), np.float32), Grid.from_spacing((5, 4, 3), (1, 2, 3)))


@pytest.fixture
def instances():
    masks = np.zeros((3, 5, 4, 3), bool)
    masks[0, :2], masks[1, 3:], masks[2, 3:, 1] = True, True, True
    return Instances.from_masks(masks, classes=[1, 2, 1], scores=[0.25, 0.75, 0.5])


def test_instances_round_trip(tmp_path, instances):
    path = tmp_path / "x.nii.gz"
    write_instances(instances, IMAGE, path, LABELS)
    found = read_instances(path)
    assert found.ids.grid.matches(IMAGE.grid)
    assert (found.ids.data[0] == instances.to_map()).all()
    assert found.values == {1: 3, 2: 8}  # the third is covered whole by the second
    assert found.scores == {1: 0.25, 2: 0.75}


def test_map_without_table_is_read(tmp_path, instances):
    write(IMAGE.with_data(instances.to_map()[None].astype(np.uint16), kind="label"), tmp_path / "x.nrrd")
    found = read_instances(tmp_path / "x.nrrd")
    assert (found.values, found.scores) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label_value\tscore\n1\t1\n", "found columns label_value, score, expected id"),
        ("id\tlabelvalue\n1\t1\n", "unknown column 'labelvalue'. Did you mean 'label_value'"),
        ("id\tclass\n1\t1\n", "column 'class': renamed to 'label_value'"),
        ("", "found an empty table"),
        ("id\tlabel_value\n1\tliver\n", "line 2: found 1, liver, expected numbers"),
        ("id\tlabel_value\n1\n", "line 2"),
        ("id\tlabel_value\n1\t" + "2" * 140_000 + "\n", "line 2: field larger than"),
        ("i" * 140_000, "field larger than"),
        ("id\tscore\n1\t0.5\n1\t0.6\n", "line 3: found id 1 again"),
        ("id\tscore\n1\tnan\n", "line 2: found score nan"),
        ("id\tlabel_value\n1\t0\n", "line 2: found label value 0"),
        ("id\tscore\n0\t0.5\n", "line 2: found id 0, expected at least 1"),
    ],
)
def test_damaged_tables_raise(tmp_path, instances, text, message):
    write_instances(instances, IMAGE, tmp_path / "x.nii.gz", LABELS)
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_instances(tmp_path / "x.nii.gz")


def test_table_and_map_of_different_shapes_raise(tmp_path):
    with pytest.raises(DataError, match=r"expected \(5, 4, 3\)"):
        write_instances(Instances.empty((5, 4, 4)), IMAGE, tmp_path / "x.nii.gz", LABELS)
    assert not list(tmp_path.iterdir())
