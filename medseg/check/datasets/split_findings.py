"""Checks of splits: leaks between training and validation, and labels without a training case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medseg.check.cases.check_case import CheckedCase
from medseg.check.datasets.across_cases import groups_by
from medseg.check.finding import Finding
from medseg.data.datasets.names import persons_by_name
from medseg.data.datasets.splits import Split
from medseg.labels.label_table import Labels


def split_findings(
    splits: Sequence[Split], cases: Sequence[CheckedCase], labels: Labels | None, file: str
) -> Iterator[Finding]:
    """Yield findings about the training and validation cases of each fold.

    Args:
        splits: One split per fold, whose ids exist.
        cases: The checked cases.
        labels: Labels of the dataset; None if it names none.
        file: Where the splits come from, for findings.

    Yields:
        Findings.
    """
    by_id = {case.id: case for case in cases}
    subjects = {case.id: case.subject for case in cases}
    same_image = {
        case.id: group[0].id for group in groups_by(cases, lambda case: case.image_hash) for case in group
    }
    persons = {name: person for person, names in persons_by_name(by_id).items() for name in names}
    for fold, split in enumerate(splits):
        where = f"fold {fold}"
        yield from _leaks(split, subjects, "SPLIT_LEAKS_SUBJECT", file, where)
        yield from _leaks(split, same_image, "SPLIT_LEAKS_IMAGE", file, where)
        if all(subjects[case.id] == case.id for case in cases):  # no subjects are declared
            yield from _leaks(split, persons, "SPLIT_MAY_LEAK_SUBJECT", file, where)
        yield from _labels_without_training(split, by_id, labels, file, where)


def _leaks(split: Split, group_of: Mapping[str, str], code: str, file: str, where: str) -> Iterator[Finding]:
    train = {group_of[case]: case for case in reversed(split.train) if case in group_of}
    seen = set()
    for case in split.validation:
        group = group_of.get(case)
        if group in train and group not in seen:
            seen.add(group)
            other = train[group]
            found = f"{other} in training and {case} in validation"
            yield Finding(code, file, where, found, cases=(other, case))


def _labels_without_training(
    split: Split, by_id: Mapping[str, CheckedCase], labels: Labels | None, file: str, where: str
) -> Iterator[Finding]:
    counted = {name: case.label_counts for name, case in by_id.items() if case.label_counts is not None}
    for label in labels.foreground if labels is not None else ():
        having = [name for name, counts in counted.items() if counts.get(label.value)]
        if having and not any(name in having for name in split.train):
            found = f"{label.name} in no training case, but in {', '.join(having[:5])}"
            yield Finding("LABEL_MISSING_IN_FOLD", file, where, found)
