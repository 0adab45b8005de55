"""Splits: every subject validated once, and files that cannot mislead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.datasets.cases import Case
from medseg.data.datasets.splits import Split, k_fold, read_splits, subjects_of, write_splits
from medseg.errors import DataError


def cases(*visits: int) -> list[Case]:
    """Subject i with `visits[i]` cases."""
    return [
        Case(f"s{subject:02d}_{visit}", (Path("a.nii"),), None, f"s{subject:02d}")
        for subject, count in enumerate(visits)
        for visit in range(count)
    ]


@settings(deadline=None, max_examples=60)
@given(
    visits=st.lists(st.integers(1, 4), min_size=2, max_size=25),
    folds=st.integers(2, 8),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_folds_partition_subjects(visits, folds, seed, data):
    folds = min(folds, len(visits))
    everyone = cases(*visits)
    splits = k_fold(everyone, folds, seed)
    subject = {case.id: case.subject for case in everyone}
    validated = [case_id for split in splits for case_id in split.validation]
    assert sorted(validated) == sorted(subject)
    sizes = []
    for split in splits:
        assert sorted(split.train + split.validation) == sorted(subject)
        ours = {subject[i] for i in split.validation}
        assert not ours & {subject[i] for i in split.train}
        sizes.append(len(ours))
    assert len(splits) == folds
    assert max(sizes) - min(sizes) <= 1
    shuffled = data.draw(st.permutations(everyone))
    assert k_fold(shuffled, folds, seed) == splits


def test_seed_decides_the_order():
    everyone = cases(*[1] * 20)
    assert k_fold(everyone, 5, 0) == k_fold(everyone, 5, 0)
    assert k_fold(everyone, 5, 0) != k_fold(everyone, 5, 1)


def test_folds_are_the_same_on_every_machine():
    assert [split.validation for split in k_fold(cases(1, 1, 2, 1), 2)] == EXPECTED


EXPECTED = [("s00_0", "s02_0", "s02_1"), ("s01_0", "s03_0")]


@pytest.mark.parametrize(
    ("folds", "message"), [(5, "found 3 subjects with a label map, expected at least 5"), (1, "at least 2")]
)
def test_impossible_folds(folds, message):
    with pytest.raises(DataError, match=message):
        k_fold(cases(2, 2, 2), folds)


def test_round_trip(tmp_path):
    splits = k_fold(cases(1, 2, 3, 1, 1), 3)
    write_splits(splits, tmp_path / "splits.json")
    assert read_splits(tmp_path / "splits.json", cases(1, 2, 3, 1, 1)) == splits


def test_nnunet_splits_are_understood(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["s00_0"], "val": ["s01_0"]}]))
    assert read_splits(tmp_path / "splits_final.json") == [Split(("s00_0",), ("s01_0",))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"train": ["s00_0"], "validation": ["s01_O"]}],
            "fold 0: found the unknown case 's01_O', expected one of the .* Did you mean 's01_0'",
        ),
        (
            [{"train": ["s00_0"], "val": []}, {"train": ["s00_0"], "val": ["s00_0"]}],
            "fold 1: .* in train and in validation",
        ),
        ([{"train": ["s00_0"], "validation": ["s00_1"]}], "found cases of subject 's00' in train"),
        ([{"train": ["s00_0", "s00_0"], "validation": []}], "'s00_0' is listed twice"),
        ([{"train": ["s00_0"]}], "expected train and validation"),
        ([{"train": [], "val": [], "validation": []}], "expected train and validation"),
        ([{"train": "s00_0", "validation": []}], "train: expected a list"),
        ([{"train": [1], "validation": []}], "train: expected a list"),
        ([7], "found a int, expected an object"),
        ({}, "expected a list of splits"),
        ([], "expected a list of splits"),
    ],
)
def test_splits_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_splits(path, cases(2, 1))
    assert "splits.json" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_splits(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("names", "persons"),
    [
        ([f"p{n}_{part}" for n in range(12) for part in "ab"], 12),
        ([f"patient{n:03}_frame{frame:02}" for n in range(20) for frame in (1, 12)], 20),
        ([f"sub{n}_visit{visit}" for n in range(8) for visit in (1, 2, 3)], 8),
        ([f"liver_{n}" for n in range(30)], 30),
        ([f"site{site}_{n:03}" for site in (1, 2) for n in range(15)], 30),
    ],
)
def test_cases_of_one_person_stay_together_although_no_subject_is_declared(names, persons):
    cases = [Case(name, (Path(f"{name}.nii.gz"),)) for name in names]
    subject = subjects_of(cases)
    assert len(set(subject.values())) == persons
    for split in k_fold(cases, 5):
        assert not {subject[name] for name in split.train} & {subject[name] for name in split.validation}
        assert sorted((*split.train, *split.validation)) == sorted(names)


def test_declared_subjects_count_more_than_names():
    cases = [Case(name, (Path("x.nii"),), subject=name[-1]) for name in ("p1_a", "p1_b", "p2_a", "p2_b")]
    assert subjects_of(cases) == {"p1_a": "a", "p1_b": "b", "p2_a": "a", "p2_b": "b"}
