"""The cases on which a network is quantized and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.data.datasets.cases import AbsentChannels, Case, Dataset, ReadingOptions
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.splits import k_fold
from medseg.errors import ConfigError, DataError
from medseg.experiment.held_out import dataset_of_run
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels


@dataclass(frozen=True)
class QuantizationCases:
    """Cases to calibrate 8-bit integers on and cases to measure them on.

    Attributes:
        calibrate: Cases whose windows give the ranges of integers.
        measure: Cases on which Dice is measured.
        held_out: Whether the model was not trained on the measured cases; None if that is not known.
    """

    calibrate: tuple[Case, ...]
    measure: tuple[Case, ...]
    held_out: bool | None


def cases_of_run(run: RunFolder) -> QuantizationCases:
    """Return the training cases of a run to calibrate on, and its held-out cases to measure on.

    The ensemble of a cross-validation was trained on all cases; the first fold's division is used.

    Args:
        run: A finished run.

    Returns:
        The cases.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The run holds no case out, or its dataset cannot be read.
    """
    dataset = dataset_of_run(run)
    split = run.read_splits(dataset.labelled_cases)[0]
    if not split.validation:
        raise DataError(
            f"{run}: found no held-out cases, because the run trains on all cases (data.fold=all). Give a dataset with --data."
        )
    train, validation = (dataset.subset(ids).cases for ids in (split.train, split.validation))
    return QuantizationCases(train, validation, not run.is_cross_validation)


def cases_of_dataset(
    path: str | Path, labels: Labels, absent_channels: AbsentChannels = "refuse"
) -> QuantizationCases:
    """Divide the annotated cases of a dataset: a fifth of the subjects is measured, the others calibrate.

    Args:
        path: Dataset folder or table of cases.
        labels: Labels of the model.
        absent_channels: What the model does with cases that lack channels.

    Returns:
        The cases.

    Raises:
        ConfigError: The dataset has other labels than the model.
        DataError: The dataset cannot be read, or has fewer than two annotated cases.
    """
    dataset = read_dataset(path, reading=ReadingOptions(absent_channels=absent_channels))
    _check_labels(dataset, labels, path)
    cases = dataset.labelled_cases
    if len(cases) < 2:
        raise DataError(
            f"{path}: annotated cases: found {len(cases)}, expected at least 2. Give a larger dataset."
        )
    split = k_fold(cases, folds=min(5, len(cases)))[0]
    return QuantizationCases(dataset.subset(split.train).cases, dataset.subset(split.validation).cases, None)


def spread(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """Return at most `count` cases, evenly spread over the given ones.

    >>> spread(range(10), 3)
    (0, 3, 6)
    """
    if len(cases) <= count:
        return tuple(cases)
    return tuple(cases[index * len(cases) // count] for index in range(count))


def _check_labels(dataset: Dataset, labels: Labels, path: str | Path) -> None:
    if dataset.labels is None:
        return
    found, expected = (
        {label.name: label.value for label in table.foreground} for table in (dataset.labels, labels)
    )
    if found != expected:
        raise ConfigError(
            f"{path}: labels: found {found}, expected those of the model, {expected}. Give a dataset of the same labels."
        )
