"""Cross-validation: the folds of one experiment, trained one after another or separately, and aggregated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from medseg.config import differences
from medseg.data.datasets.splits import Split
from medseg.errors import ConfigError, DataError
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.experiment.cross_validation.aggregate import aggregate
from medseg.experiment.mirroring import resolve_mirroring
from medseg.experiment.resolve_data import (
    all_splits,
    find_dataset,
    labels_of,
    resolve_preprocessing,
    with_absolute_paths,
)
from medseg.experiment.run_folder import RunFolder
from medseg.experiment.training_setup import TrainingSetup
from medseg.inference.postprocess import component_groups
from medseg.runtime.formatting import pluralise
from medseg.train.distributed_training import Distributed
from medseg.train.reports.reporting import Report

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig
    from medseg.runtime.progress import Progress
    from medseg.train.trainer import Trainer


class CrossValidation:
    """The folds of an experiment in one folder; see `Experiment.cross_validation`.

    Args:
        experiment: Experiment to cross-validate.
        run: Folder of the folds, new or of the same experiment.
        cluster: Dask cluster on which cases are measured and prepared, and held-out cases predicted; None for this machine.

    Attributes:
        run: The folder of the folds.
        cluster: The Dask cluster, or None.
        experiment: The experiment that all folds share. Its `data.fold` is 0, which has no meaning here; see
            `fold_experiment`.
        splits: The split of each fold.
        folds: The indices of the folds.

    Raises:
        ConfigError: The folder holds a single run, other files, or folds of another experiment.
        DataError: The dataset or the splits cannot be used.
    """

    def __init__(self, experiment: ExperimentConfig, run: RunFolder, cluster: str | None = None) -> None:
        self.run = run
        self.cluster = cluster
        self._processes = Distributed(experiment.train, experiment.model.spatial_dims)
        with self._processes.main_first():
            if self._processes.is_main:
                _open(experiment, run, cluster)
        self.experiment = run.read_experiment()
        dataset = find_dataset(self.experiment, run.shared_folder)
        self.splits = run.read_splits(dataset.labelled_cases)
        self.folds = range(len(self.splits))

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which prints, writes and aggregates."""
        return self._processes.is_main

    @property
    def unfinished(self) -> list[int]:
        """The folds that have not been trained to their end."""
        return [fold for fold in self.folds if not self.is_finished(fold)]

    def fold_experiment(self, fold: int) -> ExperimentConfig:
        """Return the experiment of one fold.

        Args:
            fold: Index of the fold.

        Returns:
            The experiment, with `data.fold` set.

        Raises:
            ConfigError: The fold does not exist.
        """
        if fold not in self.folds:
            raise ConfigError(
                f"fold: found {fold}, expected 0 to {len(self.folds) - 1} ({self.run.splits}). Give one of them."
            )
        return self.experiment.replace(data=self.experiment.data.replace(fold=fold).to_plain())

    def is_finished(self, fold: int) -> bool:
        """Return whether a fold has been trained to its end.

        Args:
            fold: Index of the fold.

        Returns:
            True if the fold has written its model; False if it was not started or was interrupted.

        Raises:
            ConfigError: The fold does not exist, or its folder holds another experiment.
        """
        experiment, folder = self.fold_experiment(fold), self.run.fold(fold)
        if folder.config.is_file():
            folder.check_resumable(experiment)
        return folder.is_finished

    def trainer(self, fold: int, *, progress: Progress | None = None) -> Trainer:
        """Prepare the trainer of one fold, see `Experiment.trainer`.

        Args:
            fold: Index of the fold.
            progress: Called with (done, total, case id) as cases are prepared.

        Returns:
            The trainer, which starts from the beginning or continues from the last checkpoint of the fold.

        Raises:
            ConfigError: The fold does not exist, or its folder holds another experiment.
            DataError: The dataset cannot be used.
        """
        folder = self.run.fold(fold)
        setup = TrainingSetup.start(
            self.fold_experiment(fold),
            folder,
            resume=folder.config.is_file(),
            progress=progress,
            cluster=self.cluster,
        )
        return setup.trainer()

    def __iter__(self) -> Iterator[tuple[int, Report]]:
        """Train the unfinished folds, then aggregate; yield each report with its fold."""
        for fold in self.folds:
            if not self.is_finished(fold):
                yield from ((fold, report) for report in self.trainer(fold))
        if self.is_main:
            self.aggregate()

    def aggregate(self, *, progress: Progress | None = None) -> FoldTable:
        """Predict and measure the held-out cases of every fold, select post-processing, and write the ensemble.

        Args:
            progress: Called with (done, total, text), where the text names the step and the case.

        Returns:
            The metrics of every case and their means per fold, which are also written to ``RUN/evaluation``.

        Raises:
            ConfigError: Folds are not finished, or another process aggregates.
            DataError: A case cannot be predicted or measured.
        """
        return aggregate(self.run, progress=progress, cluster=self.cluster)

    def __repr__(self) -> str:
        cases = sum(len(split.validation) for split in self.splits)
        done = len(self.folds) - len(self.unfinished)
        return (
            f"CrossValidation({self.experiment.name}: {pluralise(len(self.folds), 'fold')}, {done} finished, "
            f"{pluralise(cases, 'case')} held out)"
        )


def _open(experiment: ExperimentConfig, run: RunFolder, cluster: str | None) -> None:
    """Write what the folds share, or check that it belongs to this experiment.

    Until a fold has started, another experiment may take the folder.
    """
    experiment = with_absolute_paths(experiment)
    if run.is_cross_validation and run.config.is_file():
        stored = run.read_experiment()
        given = _for_all_folds(experiment, stored.data.folds)
        if given == stored:
            return
        if run.started_folds:
            raise ConfigError(
                f"{run.config}: differs from the given experiment, expected the same, because training has begun: "
                f"{differences(given, stored)}. Continue it with: medseg train --resume {run}; or choose another folder."
            )
    run.check_vacant_for_folds()
    dataset = find_dataset(experiment, run.shared_folder)
    splits = all_splits(experiment, dataset)
    _check_held_out_once(splits, experiment.data.splits or str(dataset.root))
    labels = labels_of(experiment, dataset)
    component_groups(experiment.predict, labels)  # raises for unknown names
    resolve_mirroring(experiment, labels)
    cases = sorted({case for split in splits for case in chain(split.train, split.validation)})
    preprocessing = resolve_preprocessing(experiment, dataset, labels, cases, cluster=cluster)
    run.open_for_folds(_for_all_folds(experiment, len(splits)), splits, preprocessing)


def _check_held_out_once(splits: Sequence[Split], where: str) -> None:
    """Raise if there is only one fold, or if two folds hold out the same case."""
    if len(splits) < 2:
        raise DataError(
            f"{where}: found {len(splits)} fold, expected at least 2 to cross-validate. Give more, or train without "
            "--all-folds."
        )
    held_out_by: dict[str, int] = {}
    for fold, split in enumerate(splits):
        for case in split.validation:
            if case in held_out_by:
                raise DataError(
                    f"{where}: case {case!r} is held out by folds {held_out_by[case]} and {fold}, expected one, whose "
                    "prediction is evaluated. Fix the splits."
                )
            held_out_by[case] = fold


def _for_all_folds(experiment: ExperimentConfig, folds: int) -> ExperimentConfig:
    """Return the experiment that all folds share: with `data.fold` 0 and, if it has a splits file, `folds` folds."""
    data = experiment.data
    folds = folds if data.splits is not None else data.folds
    return experiment.replace(data=data.replace(fold=0, folds=folds).to_plain())
