"""Cross-validation: the folds of one experiment, trained one after another or apart, and gathered."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.config import differences
from medseg.data.datasets.splits import Split, read_splits, write_splits
from medseg.errors import ConfigError
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.experiment.cross_validation.aggregate import aggregate
from medseg.experiment.fold_folders import (
    SHARED,
    check_held_out_once,
    check_new,
    fold_folder,
    is_cross_validation,
    started_folds,
)
from medseg.experiment.make_trainer import (
    all_splits,
    make_trainer,
    resolve_preprocessing,
    with_absolute_paths,
)
from medseg.experiment.mirroring import resolve_mirroring
from medseg.experiment.run_folder import check_run, find_dataset, labels_of, load_run, save_config
from medseg.inference.postprocess import component_groups
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import write_text
from medseg.train.distributed_training import Distributed
from medseg.train.reporting import Report

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig
    from medseg.runtime.progress import Progress
    from medseg.train.trainer import Trainer


class CrossValidation:
    """The folds of an experiment in one folder; see `Experiment.cross_validation`.

    Attributes:
        run: the folder. experiment: of all folds, with `data.fold` 0. folds: their numbers.
    """

    def __init__(self, experiment: ExperimentConfig, run: Path) -> None:
        self.run = run
        self._team = Distributed(experiment.train)
        with self._team.main_first():
            if self._team.is_main:
                _open(experiment, run)
        self.experiment = load_run(run)
        dataset = find_dataset(self.experiment, run)
        self.splits = read_splits(run / "splits.json", dataset.labelled_cases)
        self.folds = range(len(self.splits))

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints, writes and gathers."""
        return self._team.is_main

    @property
    def unfinished(self) -> list[int]:
        """Folds that have not been trained to their end."""
        return [fold for fold in self.folds if not self.is_finished(fold)]

    def folder(self, fold: int) -> Path:
        """The run folder of a fold."""
        return fold_folder(self.run, fold)

    def fold_experiment(self, fold: int) -> ExperimentConfig:
        """The experiment of one fold.

        Raises:
            ConfigError: there is no such fold.
        """
        if fold not in self.folds:
            raise ConfigError(
                f"fold: found {fold}, expected 0 to {len(self.folds) - 1} ({self.run / 'splits.json'}). Give one of them."
            )
        return self.experiment.replace(data=self.experiment.data.replace(fold=fold).to_plain())

    def is_finished(self, fold: int) -> bool:
        """Whether a fold has been trained to its end.

        Raises:
            ConfigError: its folder holds another experiment.
        """
        experiment, folder = self.fold_experiment(fold), self.folder(fold)
        if (folder / "config.yaml").is_file():
            check_run(experiment, folder, resume=True)
        return (folder / "model").is_dir()

    def trainer(self, fold: int, *, progress: Progress | None = None) -> Trainer:
        """The trainer of one fold, new or where it was stopped; see `Experiment.trainer`."""
        experiment, folder = self.fold_experiment(fold), self.folder(fold)
        resume = (folder / "config.yaml").is_file()
        return make_trainer(experiment, folder, resume=resume, extend=None, progress=progress)

    def __iter__(self) -> Iterator[tuple[int, Report]]:
        """Train what is not finished, and gather. Yields each report with its fold."""
        for fold in self.folds:
            if not self.is_finished(fold):
                yield from ((fold, report) for report in self.trainer(fold))
        if self.is_main:
            self.aggregate()

    def aggregate(self, *, progress: Progress | None = None) -> FoldTable:
        """Predict what each fold held out, measure it, learn the post-processing, and write the ensemble.

        Args:
            progress: called with (done, total, what), where `what` is such as "predicting CASE".

        Returns:
            The table, which is also written to ``RUN/evaluation``.

        Raises:
            ConfigError: folds are not finished, or another process gathers.
            DataError: a case cannot be predicted or measured.
        """
        return aggregate(self.run, progress=progress)

    def __repr__(self) -> str:
        cases = sum(len(split.validation) for split in self.splits)
        done = len(self.folds) - len(self.unfinished)
        return f"CrossValidation({self.experiment.name}: {pluralise(len(self.folds), 'fold')}, {done} finished, {pluralise(cases, 'case')} held out)"


def _open(experiment: ExperimentConfig, run: Path) -> None:
    """Write what the folds share, or check that it is of this experiment.

    ``config.yaml`` is written last. As long as no fold has begun, another experiment may take the folder.
    """
    experiment = with_absolute_paths(experiment)
    if is_cross_validation(run) and (run / "config.yaml").is_file():
        stored = load_run(run)
        given = _for_all_folds(experiment, stored.data.folds)
        if given == stored:
            return
        if started_folds(run):
            raise ConfigError(
                f"{run / 'config.yaml'}: differs from the given experiment, expected the same, because training has begun: "
                f"{differences(given, stored)}. Go on with: medseg train --resume {run}; or choose another folder."
            )
    check_new(run)
    dataset = find_dataset(experiment, run)
    splits = all_splits(experiment, dataset)
    check_held_out_once(splits, experiment.data.splits or str(dataset.root))
    labels = labels_of(experiment, dataset)
    component_groups(experiment.predict, labels)  # refuses unknown names
    resolve_mirroring(experiment, labels)
    cases = sorted({case for split in splits for case in chain(split.train, split.validation)})
    everything = Split(tuple(cases), ())
    preprocessing = resolve_preprocessing(experiment, dataset, labels, everything)
    write_splits(splits, run / "splits.json")
    write_text(run / SHARED, preprocessing.to_yaml())
    save_config(_for_all_folds(experiment, len(splits)), run)


def _for_all_folds(experiment: ExperimentConfig, folds: int) -> ExperimentConfig:
    """The experiment without a fold of its own; a splits file tells how many there are."""
    data = experiment.data
    folds = folds if data.splits is not None else data.folds
    return experiment.replace(data=data.replace(fold=0, folds=folds).to_plain())
