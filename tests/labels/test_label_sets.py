"""Sets of classes that a voxel may be of, and what follows from them for labels and regions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels

ORGANS = Labels.from_names({"liver": 1, "spleen": 2, "kidney": 3})
TUMOUR = Labels.from_names({"oedema": 1, "necrosis": 2, "enhancing": 3})
REGIONS = TUMOUR.with_regions({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})


def test_a_fully_annotated_dataset_needs_no_sets():
    label_sets = LabelSets.from_annotations(ORGANS, {"a": None, "b": ("liver", "spleen", "kidney")})
    assert label_sets.is_fully_annotated
    assert label_sets.sets == ()
    assert label_sets.background_value(None) == 0
    assert not LabelSets.from_annotations(REGIONS).is_fully_annotated


def test_an_ignore_value_is_the_set_of_all_classes():
    label_sets = LabelSets.from_annotations(replace(ORGANS, ignore=255))
    assert label_sets.sets == ((0, 1, 2, 3),)
    assert label_sets.num_values == 5
    assert label_sets.certain()[4].tolist() == [False, False, False]
    assert label_sets.known()[4].tolist() == [False, False, False]


def test_unannotated_labels_may_be_in_the_background():
    label_sets = LabelSets.from_annotations(ORGANS, {"a": ("liver",), "b": ("spleen", "kidney"), "c": None})
    assert label_sets.sets == ((0, 1, 2, 3), (0, 1), (0, 2, 3))
    assert label_sets.background_value(("liver",)) == 6
    assert label_sets.background_value(("kidney", "spleen")) == 5
    assert label_sets.background_value(None) == 0
    assert label_sets.possible()[6].tolist() == [True, False, True, True]
    assert label_sets.known()[6].tolist() == [True, False, False]
    assert label_sets.certain()[:4].tolist() == np.eye(4, dtype=bool)[:, 1:].tolist()
    assert label_sets.known()[:4].all()


def test_a_case_without_annotated_labels_is_unknown_everywhere():
    label_sets = LabelSets.from_annotations(ORGANS, {"a": ()})
    assert label_sets.sets == ((0, 1, 2, 3),)
    assert label_sets.background_value(()) == 4


def test_a_region_is_known_where_the_set_is_inside_or_outside():
    label_sets = LabelSets.from_annotations(REGIONS, {"a": ("oedema",), "b": ("oedema", "necrosis")})
    assert label_sets.sets == ((0, 1, 2, 3), (0, 2, 3), (0, 3))
    assert label_sets.certain()[:4].tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not label_sets.known()[5:].any()  # whatever may be background is of no region for sure
    partial = replace(label_sets, sets=((0, 1, 2, 3), (2, 3), (0, 1)))
    assert partial.certain()[5].tolist() == [True, True, False]
    assert partial.known()[5].tolist() == [True, True, False]
    assert partial.known()[6].tolist() == [False, True, True]


def test_an_unknown_annotated_label_is_refused_with_its_case():
    with pytest.raises(DataError, match=r"case a: labels: unknown label 'livre'\. Did you mean 'liver'\?"):
        LabelSets.from_annotations(ORGANS, {"a": ("livre",)})
