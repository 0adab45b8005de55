"""The experiment: a configuration and the operations on it."""

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
    """A configuration with its trainer and its cross-validation.

    >>> from medseg.experiment.experiment import Experiment
    >>> experiment = Experiment.parse({"model": {"name": "unet_3d"}, "train": {"steps": 100}})
    >>> experiment.train.steps, experiment.model.spatial_dims
    (100, 3)
    """

    @classmethod
    def from_run(cls, run: str | Path) -> Self:
        """Read the experiment of a run folder, to resume it or to inspect its settings.

        Args:
            run: Run folder.

        Returns:
            The experiment with all settings of the run.

        Raises:
            ConfigError: The folder is not a run.
        """
        from medseg.experiment.run_folder import RunFolder

        return cls.parse(dict(RunFolder(Path(run)).read_experiment()), source=str(run))

    @property
    def config(self) -> ExperimentConfig:
        """The configuration without the operations."""
        return ExperimentConfig.parse(dict(self), source=self.name)

    def trainer(
        self,
        run: str | Path,
        *,
        resume: bool = False,
        extend: str | None = None,
        progress: Progress | None = None,
        cluster: str | None = None,
    ) -> Trainer:
        """Prepare the data and return the trainer; iterate over it to train.

        Args:
            run: Run folder to write; it must be new unless `resume` is True.
            resume: Continue from the last checkpoint of a run with the same configuration.
            extend: With `resume`, additional steps (``"2000"``) or time (``"30m"``) for a finished run.
            progress: Called with (done, total, case id) as cases are measured and prepared.
            cluster: Dask cluster on which cases are measured and prepared, as for ``medseg predict --cluster``: ``local:N``,
                the address of a scheduler, or a YAML file that describes jobs of SLURM. None for the machines that train.

        Returns:
            The trainer, which yields a report at regular intervals.

        Raises:
            ConfigError: The folder holds another run, or the run is unfinished and cannot be extended.
            DataError: The dataset cannot be used.
        """
        from medseg.experiment.run_folder import RunFolder
        from medseg.experiment.training_setup import TrainingSetup

        if extend is not None and not resume:
            raise ConfigError(
                f"extend: found {extend!r} with resume=False, expected resume=True. Set it, or leave extend out."
            )
        setup = TrainingSetup.start(
            self.config,
            RunFolder(Path(run)),
            resume=resume,
            extend=extend,
            progress=progress,
            cluster=cluster,
        )
        return setup.trainer()

    def cross_validation(self, run: str | Path, *, cluster: str | None = None) -> CrossValidation:
        """Return the cross-validation of this experiment; iterate over it to train all folds and aggregate the results.

        ``for fold, report in experiment.cross_validation("runs/x"): print(fold, report)``. Finished folds are skipped,
        stopped folds are resumed. All folds share the splits and the preprocessing, whose intensity statistics are
        measured on all cases, as in nnU-Net; nothing else is learned from held-out labels.

        Args:
            run: Folder of the folds, new or of the same experiment.
            cluster: Dask cluster on which cases are measured and prepared, and held-out cases predicted, as for `trainer`.

        Returns:
            The cross-validation.

        Raises:
            ConfigError: The folder holds something else.
            DataError: The dataset or the splits cannot be used.
        """
        from medseg.experiment.cross_validation.folds import CrossValidation
        from medseg.experiment.run_folder import RunFolder

        return CrossValidation(self.config, RunFolder(Path(run)))
