"""Sets of classes that a voxel may be of, and what follows from them for labels and regions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.labels.label_sets import Candidates
from medseg.labels.label_table import Labels

ORGANS = Labels.of({"liver": 1, "spleen": 2, "kidney": 3})
TUMOUR = Labels.of({"oedema": 1, "necrosis": 2, "enhancing": 3})
REGIONS = TUMOUR.with_regions({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})


def test_a_dataset_drawn_in_full_needs_no_sets():
    candidates = Candidates.of(ORGANS, {"a": None, "b": ("liver", "spleen", "kidney")})
    assert candidates.plain
    assert candidates.sets == ()
    assert candidates.background_of(None) == 0
    assert not Candidates.of(REGIONS).plain


def test_an_ignore_value_is_the_set_of_all_classes():
    candidates = Candidates.of(replace(ORGANS, ignore=255))
    assert candidates.sets == ((0, 1, 2, 3),)
    assert candidates.num_values == 5
    assert candidates.inside()[4].tolist() == [False, False, False]
    assert candidates.decided()[4].tolist() == [False, False, False]


def test_what_was_not_drawn_may_hide_in_the_background():
    candidates = Candidates.of(ORGANS, {"a": ("liver",), "b": ("spleen", "kidney"), "c": None})
    assert candidates.sets == ((0, 1, 2, 3), (0, 1), (0, 2, 3))
    assert candidates.background_of(("liver",)) == 6
    assert candidates.background_of(("kidney", "spleen")) == 5
    assert candidates.background_of(None) == 0
    assert candidates.allowed()[6].tolist() == [True, False, True, True]
    assert candidates.decided()[6].tolist() == [True, False, False]
    assert candidates.inside()[:4].tolist() == np.eye(4, dtype=bool)[:, 1:].tolist()
    assert candidates.decided()[:4].all()


def test_a_case_without_any_drawn_label_says_nothing():
    candidates = Candidates.of(ORGANS, {"a": ()})
    assert candidates.sets == ((0, 1, 2, 3),)
    assert candidates.background_of(()) == 4


def test_a_region_is_decided_where_the_set_lies_inside_or_outside():
    candidates = Candidates.of(REGIONS, {"a": ("oedema",), "b": ("oedema", "necrosis")})
    assert candidates.sets == ((0, 1, 2, 3), (0, 2, 3), (0, 3))
    assert candidates.inside()[:4].tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not candidates.decided()[5:].any()  # whatever may be background is of no region for sure
    partial = replace(candidates, sets=((0, 1, 2, 3), (2, 3), (0, 1)))
    assert partial.inside()[5].tolist() == [True, True, False]
    assert partial.decided()[5].tolist() == [True, True, False]
    assert partial.decided()[6].tolist() == [False, True, True]


def test_an_unknown_drawn_label_is_refused_by_case():
    with pytest.raises(DataError, match=r"case a: labels: unknown label 'livre'\. Did you mean 'liver'\?"):
        Candidates.of(ORGANS, {"a": ("livre",)})
