"""The experiment: a configuration together with what can be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.runtime.progress import Progress

if TYPE_CHECKING:
    from medseg.experiment.cross_validation.folds import CrossValidation
    from medseg.train.trainer import Trainer


class Experiment(ExperimentConfig):
    """A training run that can be started: its configuration, its trainer and its cross-validation."""

    @classmethod
    def from_run(cls, run: str | Path) -> Self:
        """Read the experiment of a run folder, to resume it or to inspect its settings.

        Args:
            run: Run folder, finished or not.

        Returns:
            The experiment with all settings.

        Raises:
            ConfigError: The folder is not a run.
        """
        from medseg.experiment.run_folder import RunFolder

        return cls.parse(dict(RunFolder(Path(run)).read_experiment()), source=str(run))

    @property
    def config(self) -> ExperimentConfig:
        """The configuration alone."""
        return ExperimentConfig.parse(dict(self), source=self.name)

    def trainer(
        self,
        run: str | Path,
        *,
        resume: bool = False,
        extend: str | None = None,
        progress: Progress | None = None,
    ) -> Trainer:
        """Prepare the data and return the trainer; iterate over it to train.

        Args:
            run: Folder to write; must be new unless `resume`.
            resume: Continue from the last checkpoint of a run with the same configuration.
            extend: With `resume`, steps (``"2000"``) or time (``"30m"``) in addition to those of a finished run.
            progress: Called with (done, total, case id) as cases are prepared.

        Returns:
            The trainer, which yields a report at regular intervals.

        Raises:
            ConfigError: The folder holds another run, or one that is not finished and cannot be extended.
            DataError: The dataset cannot be used.
        """
        from medseg.experiment.run_folder import RunFolder
        from medseg.experiment.training_setup import TrainingSetup

        if extend is not None and not resume:
            raise ConfigError("extend: found a new run, expected resume=True. Give both, or leave it out.")
        setup = TrainingSetup.start(self.config, RunFolder(Path(run)), resume=resume, extend=extend)
        return setup.trainer(progress)

    def cross_validation(self, run: str | Path) -> CrossValidation:
        """Return the cross-validation of this experiment; iterate over it to train all folds and aggregate the results.

        ``for fold, report in experiment.cross_validation("runs/x"): print(fold, report)``. Finished folds are
        skipped, interrupted ones continue. All folds share the splits and one preprocessing, measured on all their
        cases, as in nnU-Net: nothing but these intensity statistics is learned from a held-out label.

        Args:
            run: Folder of the folds, new or of the same experiment.

        Returns:
            The cross-validation; nothing has been trained yet.

        Raises:
            ConfigError: The folder holds something else.
            DataError: The dataset or the splits cannot be used.
        """
        from medseg.experiment.cross_validation.folds import CrossValidation
        from medseg.experiment.run_folder import RunFolder

        return CrossValidation(self.config, RunFolder(Path(run)))
