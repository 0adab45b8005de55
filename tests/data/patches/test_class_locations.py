"""Voxels of each class: the table that is stored, and its memory-mapped view."""

from dataclasses import replace

import numpy as np
import pytest

from medseg.data.patches import class_locations as module
from medseg.data.patches.class_locations import LOCATIONS_PER_CLASS, ClassLocations, locations_table
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels

ORGANS = Labels.from_names({"a": 1, "b": 2, "c": 3})
LABEL_SETS = {
    "classes": LabelSets.from_annotations(ORGANS),
    "ignore": LabelSets.from_annotations(replace(ORGANS, ignore=9), {"one": ("a",), "other": ("a", "b")}),
    "regions": LabelSets.from_annotations(
        replace(ORGANS, ignore=9).with_regions({"outer": [1, 2, 3], "inner": [2, 3]})
    ),
}


def number_by_number(label, label_sets):
    """Return the table with one search through the whole label map per number."""
    rows = []
    for number, members in module._groups(np.unique(label), label_sets):
        found = np.argwhere(np.isin(label, members))
        if len(found) > LOCATIONS_PER_CLASS:
            draw = np.random.default_rng(number)
            found = found[np.sort(draw.choice(len(found), LOCATIONS_PER_CLASS, replace=False))]
        rows.append(np.column_stack([np.full(len(found), number), found]))
    return np.concatenate(rows).astype(np.int32)


@pytest.mark.parametrize("name", LABEL_SETS)
@pytest.mark.parametrize("block", [1, 5000, 1 << 22])
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_pass_equals_a_search_per_number(name, block, order, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    label_sets = LABEL_SETS[name]
    rng = np.random.default_rng(0)
    label = rng.choice(
        label_sets.num_values,
        (37, 31, 40),
        p=np.r_[0.5, np.full(label_sets.num_values - 1, 0.5 / (label_sets.num_values - 1))],
    )
    label = np.asarray(label.astype(np.uint8), order=order)
    label[:12] = 0  # slices without foreground
    assert np.array_equal(locations_table(label, label_sets), number_by_number(label, label_sets))


def test_locations_are_at_most_ten_thousand_a_class():
    label = np.zeros((40, 40, 40), np.uint8)
    label[:20] = 1
    label[30, 5, 7] = 200
    table = locations_table(label)
    assert table.dtype == np.int32
    ones = table[table[:, 0] == 1, 1:]
    assert len(ones) == LOCATIONS_PER_CLASS
    assert len(np.unique(ones, axis=0)) == LOCATIONS_PER_CLASS
    assert ones[:, 0].max() == 19  # drawn from the whole organ
    assert ones[:, 0].min() == 0
    assert table[table[:, 0] == 200].tolist() == [[200, 30, 5, 7]]
    assert locations_table(np.zeros((2, 2, 2), np.uint8)).shape == (0, 4)


def test_views_of_a_table_by_number():
    table = np.array([[0, 5, 5, 5], [2, 1, 2, 3], [2, 4, 5, 6], [7, 7, 8, 9]], np.int32)
    locations = ClassLocations(table)
    assert list(locations) == [0, 2, 7]
    assert len(locations) == 3
    assert locations[2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.shares_memory(locations[2], table)
    assert [number in locations for number in (0, 1, 2, 7, 8)] == [True, False, True, True, False]
    assert locations.get(1) is None
    assert not ClassLocations(table[:0])


def test_visits_of_a_stored_case_keep_nothing(make_stored):
    label = np.random.default_rng(0).integers(0, 100, (20, 20, 20)).astype(np.uint8)
    case = make_stored(label[None], label)
    before = dict(vars(case))
    for number in case.class_locations:
        assert isinstance(case.class_locations[number], np.memmap)
    assert vars(case) == before


def test_a_label_map_is_searched_once_whatever_the_number_of_classes(monkeypatch):
    searched = []
    for name in ("argsort", "flatnonzero", "nonzero", "bincount", "unique"):
        function = getattr(np, name)

        def counted(array, *args, function=function, **options):
            searched[-1] += np.size(array)
            return function(array, *args, **options)

        monkeypatch.setattr(np, name, counted)
    for classes in (3, 117):
        searched.append(0)
        locations_table(np.random.default_rng(0).integers(0, classes, (32, 32, 32)).astype(np.uint8))
    voxels = 32**3
    assert 3 * voxels <= searched[0] <= searched[1] < 3.1 * voxels  # counted twice and sorted once
