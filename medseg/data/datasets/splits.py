"""Splits into training and validation cases, by subject."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.datasets.cases import Case
from medseg.data.datasets.names import subjects_by_name
from medseg.errors import DataError, did_you_mean
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import write_text
from medseg.storage.json_files import read_json


@dataclass(frozen=True)
class Split:
    """The training and validation cases of one fold.

    Attributes:
        train: Ids of the training cases.
        validation: Ids of the validation cases.

    Raises:
        DataError: A case is in both.

    Examples:
        >>> Split(train=("a", "b"), validation=("c",)).validation
        ('c',)
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]

    def __post_init__(self) -> None:
        both = sorted(set(self.train) & set(self.validation))
        if both:
            raise DataError(
                f"split: found case {both[0]!r} in train and in validation ({len(both)} such cases), expected each case in one. "
                "Remove each case from one of them."
            )


def subjects_of(cases: Iterable[Case]) -> dict[str, str]:
    """Return the subject of each case: the declared ones or, if none is declared, persons inferred from the names of cases.

    Args:
        cases: The cases.

    Returns:
        Subjects by id of the case, in the order of the cases; see `subjects_by_name`.

    >>> cases = [Case(name, (Path(f"{name}.nii.gz"),)) for name in ("p1_a", "p1_b", "p2_a")]
    >>> subjects_of(cases)
    {'p1_a': 'p1', 'p1_b': 'p1', 'p2_a': 'p2_a'}
    """
    subjects = {case.id: case.subject for case in cases}
    if any(case_id != subject for case_id, subject in subjects.items()):
        return subjects
    return subjects_by_name(subjects)


def k_fold(cases: Sequence[Case], folds: int = 5, seed: int = 0) -> list[Split]:
    """Divide cases into folds, so that each subject is a validation subject in exactly one of them.

    All cases of a subject, see `subjects_of`, are in the same fold. The numbers of validation subjects of two folds differ by at most one.

    Args:
        cases: Cases of the dataset. Their order has no influence, because subjects are sorted before they are permuted.
        folds: Number of folds.
        seed: Seed of the permutation.

    Returns:
        One split per fold, with ids in sorted order.

    Raises:
        DataError: `folds` is below 2, or there are fewer subjects than folds.

    Examples:
        >>> from pathlib import Path
        >>> cases = [Case(name, (Path(f"{name}.nii.gz"),)) for name in "abcd"]
        >>> [len(split.validation) for split in k_fold(cases, folds=2)]
        [2, 2]
    """
    subject = subjects_of(cases)
    subjects = sorted(set(subject.values()))
    if folds < 2:
        raise DataError(f"folds: found {folds}, expected at least 2. Give more folds.")
    if len(subjects) < folds:
        raise DataError(
            f"folds: found {pluralise(len(subjects), 'subject')} with a label map, expected at least {folds} "
            f"for {folds} folds, because each fold holds out at least one. Give {'fewer folds or ' if len(subjects) > 1 else ''}more subjects."
        )
    order = np.random.default_rng(seed).permutation(len(subjects))
    fold_of = {
        subjects[index]: fold for fold, part in enumerate(np.array_split(order, folds)) for index in part
    }
    ordered = sorted(cases, key=lambda case: case.id)
    return [
        Split(
            train=tuple(case.id for case in ordered if fold_of[subject[case.id]] != fold),
            validation=tuple(case.id for case in ordered if fold_of[subject[case.id]] == fold),
        )
        for fold in range(folds)
    ]


def write_splits(splits: Sequence[Split], path: str | Path) -> None:
    """Write splits atomically as JSON: a list of ``{"train": [ids], "validation": [ids]}``.

    Args:
        splits: One split per fold.
        path: The JSON file.

    Raises:
        DataError: The file cannot be written.
    """
    plain = [{"train": list(split.train), "validation": list(split.validation)} for split in splits]
    write_text(path, json.dumps(plain, indent=1) + "\n")


def read_splits(path: str | Path, cases: Sequence[Case] | None = None) -> list[Split]:
    """Read splits in the format of `write_splits`; the key ``val`` of nnU-Net is accepted for ``validation``.

    Args:
        path: The JSON file.
        cases: Cases of the dataset, among which every id must be found; None skips the checks of ids and subjects.

    Returns:
        One split per fold.

    Raises:
        DataError: The file has another format, an id is unknown (the message suggests the nearest one), or a case or
            subject is both in training and in validation. The message names the fold.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of splits, at least one. Write [{_EXAMPLE}].")
    splits = [_parsed(entry, f"{path}: fold {fold}") for fold, entry in enumerate(entries)]
    if cases is not None:
        subjects = {case.id: case.subject for case in cases}
        for fold, split in enumerate(splits):
            _check_known(split, subjects, f"{path}: fold {fold}")
    return splits


_EXAMPLE = '{"train": ["case_1"], "validation": ["case_2"]}'


def _parsed(entry: Any, where: str) -> Split:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: found a {type(entry).__name__}, expected an object. Write {_EXAMPLE}.")
    renamed = {"validation" if key == "val" else key: value for key, value in entry.items()}
    if set(renamed) != {"train", "validation"} or len(renamed) != len(entry):
        raise DataError(
            f"{where}: found keys {sorted(entry)}, expected train and validation. Write {_EXAMPLE}."
        )
    for key, ids in renamed.items():
        if not isinstance(ids, list) or not all(isinstance(case_id, str) for case_id in ids):
            raise DataError(f"{where}: {key}: expected a list of case ids. Write {_EXAMPLE}.")
        if len(set(ids)) < len(ids):
            doubled = next(case_id for case_id in ids if ids.count(case_id) > 1)
            raise DataError(f"{where}: {key}: case {doubled!r} is listed twice. Remove one.")
    try:
        return Split(tuple(renamed["train"]), tuple(renamed["validation"]))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check_known(split: Split, subjects: dict[str, str], where: str) -> None:
    for case_id in (*split.train, *split.validation):
        if case_id not in subjects:
            raise DataError(
                f"{where}: found the unknown case {case_id!r}, expected one of the {pluralise(len(subjects), 'case')} of the "
                f"dataset.{did_you_mean(case_id, subjects)} Correct the id, or give the splits of this dataset."
            )
    both = {subjects[i] for i in split.train} & {subjects[i] for i in split.validation}
    if both:
        raise DataError(
            f"{where}: found cases of subject {min(both)!r} in train and in validation "
            f"({len(both)} such subjects), expected each subject in one. Move all cases of each subject to one of them."
        )
