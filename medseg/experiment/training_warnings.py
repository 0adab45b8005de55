"""Warnings about the cases of a training: labels that cannot be learnt, and persons on both sides of the split."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.names import persons_by_name
from medseg.data.datasets.splits import Split
from medseg.data.patches.case_store import StoredCase
from medseg.errors import warn_once
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import listed, pluralise

_MOST_LISTED = 5


def warn_of_cases(
    dataset: Dataset,
    split: Split,
    labels: Labels,
    train: Sequence[StoredCase],
    held_out: Sequence[StoredCase],
    taught: Collection[str] = (),
) -> None:
    """Warn of training cases without a label, labels without a training case, and persons on both sides of the split.

    Args:
        dataset: The dataset.
        split: Training and held-out cases.
        labels: Labels of the model.
        train: The prepared training cases.
        held_out: The prepared held-out cases.
        taught: Names of labels that an earlier network teaches, which need no case.
    """
    for message in (
        *_empty(dataset, train),
        *_unlearnable(dataset, labels, train, held_out, taught),
        *_persons(dataset, split),
    ):
        warn_once(f"{dataset.root}: {message}")


def _empty(dataset: Dataset, train: Sequence[StoredCase]) -> Iterator[str]:
    files = [_label_file(dataset.case(case.id)) for case in train if not case.has_foreground]
    if files:
        yield (
            f"label maps: found {len(files)} of {pluralise(len(train), 'training case')} with 0 labelled voxels ({listed(files, _MOST_LISTED)}), "
            "expected at least one. Check that there is nothing to segment in these images; no patch is centred on a label there."
        )


def _unlearnable(
    dataset: Dataset,
    labels: Labels,
    train: Sequence[StoredCase],
    held_out: Sequence[StoredCase],
    taught: Collection[str],
) -> Iterator[str]:
    names = labels.output_names if labels.regions else labels.output_names[1:]
    learnt = {number for case in train for number in case.class_locations}
    absent: list[str] = []
    elsewhere: list[str] = []
    for number, name in enumerate(names, 1):
        if number not in learnt and name not in taught:
            seen = any(number in case.class_locations for case in held_out)
            (elsewhere if seen else absent).append(name)
    if elsewhere:
        yield (
            f"split: found {listed(elsewhere, _MOST_LISTED)} in no training case, but in held-out cases, expected at least one training case "
            "with each label. Choose other splits, or add cases with these labels."
        )
    if absent:
        yield (
            f"labels: found {listed(absent, _MOST_LISTED)} in no case of this training, expected at least one with each label. Remove the labels "
            "from data.labels, or add cases with them."
        )


def _persons(dataset: Dataset, split: Split) -> Iterator[str]:
    cases = dataset.labelled_cases
    if any(case.subject != case.id for case in cases):  # subjects are declared, and the split respects them
        return
    train, validation = set(split.train), set(split.validation)
    for person, ids in persons_by_name(case.id for case in cases).items():
        one, other = sorted(train.intersection(ids)), sorted(validation.intersection(ids))
        if one and other:
            yield (
                f"split: found {one[0]} in training and {other[0]} in validation, expected all cases of one person ({person}, by their "
                "names) on one side. Declare the subjects in a table of cases, or choose other splits."
            )


def _label_file(case: Case) -> str:
    path = case.label or case.instances or case.probabilities
    return case.id if path is None else path.name
