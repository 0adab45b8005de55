"""The search: a study of Optuna whose trials are trainings in run folders.

Optuna (Akiba et al. 2019) chooses values with its tree-structured Parzen estimator and ends trials early by the median rule.
The study is a file of the search's folder, so that a search that was killed continues, the training it was in included.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from medseg.errors import ConfigError, DiskFullError, MedsegError
from medseg.experiment.config import ExperimentConfig
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder
from medseg.runtime.progress import Progress
from medseg.storage.atomic import make_folder, write_text
from medseg.storage.lock import RunLock
from medseg.tuning.settings import Range, TuneSettings, default_values
from medseg.tuning.trial_table import Trial, TrialTable
from medseg.yaml_dialect import read_yaml, to_yaml

if TYPE_CHECKING:
    import optuna

    from medseg.train.reports.reporting import Report

DEFAULT = "default"
_SETTINGS, _EXPERIMENT, _STUDY = "tune.yaml", "experiment.yaml", "study.log"
_PARTS = 10  # of the time of a trial, at whose ends trials are compared

OnReport = Callable[[str, "Report"], None]


@dataclass(frozen=True)
class Search:
    """A search for better settings.

    Attributes:
        folder: Folder of the search.
        settings: What is varied.
        base: The experiment that is tuned, as its YAML file has it.
    """

    folder: Path
    settings: TuneSettings
    base: dict[str, Any]

    @classmethod
    def create(cls, folder: str | Path, settings: TuneSettings, base: dict[str, Any]) -> Self:
        """Start a search in a new folder.

        Args:
            folder: Folder to create.
            settings: What to vary.
            base: The experiment to tune, as its YAML file has it.

        Returns:
            The search; iterate over `run` to train.

        Raises:
            ConfigError: The folder exists, or values do not suit the experiment.
        """
        folder = Path(folder)
        settings.check(base)
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder}: found a folder with files, expected a new one. Choose another, or continue a search with --resume."
            )
        make_folder(folder)
        write_text(folder / _EXPERIMENT, to_yaml(base))
        write_text(folder / _SETTINGS, settings.to_yaml())  # last: it marks the folder as a search
        return cls(folder, settings, base)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a search to continue it.

        Args:
            folder: Folder of the search.

        Returns:
            The search.

        Raises:
            ConfigError: The folder holds no search.
        """
        folder = Path(folder)
        if not (folder / _SETTINGS).is_file():
            raise ConfigError(
                f"{folder}: found no {_SETTINGS}, expected the folder of a search. Give the folder of --run."
            )
        return cls(folder, TuneSettings.load(folder / _SETTINGS), read_yaml(folder / _EXPERIMENT))

    def with_trials(self, trials: int) -> Self:
        """Return the search with another number of trials, which is stored.

        Args:
            trials: Number of trials in all.

        Returns:
            The search.

        Raises:
            ConfigError: The number is below 1.
        """
        settings = self.settings.replace(trials=trials)
        write_text(self.folder / _SETTINGS, settings.to_yaml())
        return replace(self, settings=settings)

    def run(self, on_report: OnReport | None = None, progress: Progress | None = None) -> Iterator[Trial]:
        """Train the default settings and then each trial; what was trained before is not trained again.

        Args:
            on_report: Called with the name of the trial and each of its reports.
            progress: Called with (done, total, case id) as cases are prepared.

        Yields:
            Each training that this process finished.

        Raises:
            ConfigError: Another process runs the search.
            DataError: The dataset cannot be used.
            Interrupted: A signal stopped the training; its state is saved.
        """
        with RunLock(self.folder):
            if self._default() is None:
                yield self._train_default(on_report, progress)
            study = self._study()
            for trial in self._pending(study):
                yield self._train_trial(study, trial, on_report, progress)
                self.table().write(self.folder)

    def table(self) -> TrialTable:
        """Return the finished trials; the default has no Dice before it is trained."""
        default = self._default() or Trial(DEFAULT, {}, "failed")
        trials = [_recorded(self.folder / name) for name in self._names()]
        return TrialTable(default, [one for one in trials if one is not None], tuple(self.settings.search))

    def write_best(self) -> Path | None:
        """Write the experiment with the best settings, at its own length of training.

        Returns:
            ``best.yaml`` in the folder of the search; None if no trial was better than the default.
        """
        best = self.table().best
        if best is None:
            (self.folder / "best.yaml").unlink(missing_ok=True)
            return None
        write_text(self.folder / "best.yaml", to_yaml(self.settings.values(self.base, best.values)))
        return self.folder / "best.yaml"

    def _default(self) -> Trial | None:
        return _recorded(self.folder / DEFAULT)

    def _names(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("trial_*/trial.json"))

    def _train_default(self, on_report: OnReport | None, progress: Progress | None) -> Trial:
        values = default_values(self.settings.values(self.base, {}), self.settings.search)
        folder = self.folder / DEFAULT
        experiment = self.settings.experiment(self.base, {})
        with closing(_training(experiment, folder, progress)) as reports:
            for report in reports:
                if on_report is not None:
                    on_report(DEFAULT, report)
        dice, steps = _last_validation(folder)
        if math.isnan(dice):
            raise ConfigError(
                f"{folder}: found no validation, expected one to compare trials by. Hold cases out with data.fold, and set a longer "
                "trial_time."
            )
        return _record(folder, Trial(DEFAULT, values, "finished", dice, steps))

    def _study(self) -> optuna.Study:
        """Open the study; the default settings join it if they could have been chosen."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.WARNING)
        settings = self.settings
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=3)
            if settings.pruning
            else optuna.pruners.NopPruner()
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.folder / _STUDY))),
                study_name="medseg",
                direction="maximize",
                load_if_exists=True,
                pruner=pruner,
            )
        default = self._default()
        if default is not None and not study.get_trials(deepcopy=False):
            space = self._distributions()
            chosen = {key: _encoded(value) for key, value in default.values.items()}
            if chosen.keys() == space.keys() and all(_contains(space[key], chosen[key]) for key in space):
                study.add_trial(optuna.create_trial(params=chosen, distributions=space, value=default.dice))
        return study

    def _pending(self, study: optuna.Study) -> Iterator[optuna.Trial]:
        """Yield the trial in which the search was stopped, and then new ones."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        for frozen in study.get_trials(deepcopy=False, states=(running,)):
            yield optuna.trial.Trial(study, frozen._trial_id)
        while len(self._names()) < self.settings.trials:
            # A sampler of its own for each trial, so that a continued search chooses as an uninterrupted one.
            study.sampler = optuna.samplers.TPESampler(
                seed=self.settings.seed + len(study.get_trials(deepcopy=False))
            )
            yield study.ask(self._distributions())

    def _train_trial(
        self, study: optuna.Study, trial: optuna.Trial, on_report: OnReport | None, progress: Progress | None
    ) -> Trial:
        """Train a trial, end it early if it is poor, and record its outcome."""
        import optuna

        values = {key: _decoded(value) for key, value in trial.params.items()}
        name = trial.user_attrs.get("name") or f"trial_{len(self._names()):03}"
        trial.set_user_attr("name", name)
        folder = self.folder / name
        found = _recorded(folder) or self._trained(
            trial, Trial(name, values, "finished"), on_report, progress
        )
        states = optuna.trial.TrialState
        if found.state == "failed":
            study.tell(trial, state=states.FAIL)
        elif found.state == "pruned":
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, found.dice)
        for checkpoints in ("last", "best"):
            shutil.rmtree(folder / checkpoints, ignore_errors=True)
        return found

    def _trained(
        self, trial: optuna.Trial, planned: Trial, on_report: OnReport | None, progress: Progress | None
    ) -> Trial:
        """Train a trial, end it early if it is poor, and record its outcome."""
        folder, state, message = self.folder / planned.name, planned.state, ""
        try:
            experiment = self.settings.experiment(self.base, planned.values)
            with closing(_training(experiment, folder, progress)) as reports:
                for report in reports:
                    if on_report is not None:
                        on_report(planned.name, report)
                    if self._is_poor(trial, report):
                        state = "pruned"
                        break
        except DiskFullError:
            raise
        except (
            MedsegError
        ) as error:  # values that do not go together, too little memory, or a training that diverges
            state, message = "failed", str(error)
        dice, steps = _last_validation(folder)
        if state == "finished" and math.isnan(dice):
            state, message = "failed", "no validation within the time of a trial"
        make_folder(folder)
        return _record(folder, replace(planned, state=state, dice=dice, steps=steps, message=message))

    def _is_poor(self, trial: optuna.Trial, report: Report) -> bool:
        """Tell the study the Dice of a validation, and return whether the trial should end."""
        if report.mean_dice is None or report.step == report.steps:
            return False
        part = min(_PARTS - 1, int(_PARTS * report.seconds / self.settings.trial_seconds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a part that has a value already
            trial.report(report.mean_dice, part)
        return bool(trial.should_prune())

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for key, space in self.settings.search.items():
            if not isinstance(space, Range):
                found[key] = CategoricalDistribution([_encoded(value) for value in space])
            elif space.integer:
                found[key] = IntDistribution(int(space.low), int(space.high), log=space.log)
            else:
                found[key] = FloatDistribution(space.low, space.high, log=space.log)
        return found


def _training(
    experiment: ExperimentConfig, folder: Path, progress: Progress | None
) -> Generator[Report, None, None]:
    """Train a trial, from its last checkpoint if it was stopped, and yield its reports."""
    resume = (folder / "config.yaml").is_file()
    trainer = Experiment.parse(dict(experiment), source=str(folder)).trainer(
        folder, resume=resume, progress=progress
    )
    yield from trainer


def _last_validation(folder: Path) -> tuple[float, int]:
    """Return the mean Dice of the last validation of a training, NaN if there is none, and its last step."""
    file = RunFolder(folder).metrics
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    reports = [json.loads(line) for line in lines]
    dice = math.nan
    for report in reports:
        values = [value for value in report.get("val_dice", {}).values() if value is not None]
        dice = sum(values) / len(values) if values else dice
    return dice, reports[-1]["step"] if reports else 0


def _record(folder: Path, trial: Trial) -> Trial:
    """Write the outcome of a trial into its folder."""
    plain = {"format": 1, **vars(trial), "dice": None if math.isnan(trial.dice) else trial.dice}
    write_text(folder / "trial.json", json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    return trial


def _recorded(folder: Path) -> Trial | None:
    """Read the outcome of a trial; None if it has none yet."""
    file = folder / "trial.json"
    if not file.is_file():
        return None
    plain = json.loads(file.read_text(encoding="utf-8"))
    plain.pop("format")
    return Trial(**{**plain, "dice": math.nan if plain["dice"] is None else plain["dice"]})


def _encoded(value: Any) -> Any:
    """Return a value as a choice of Optuna: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def _contains(space: optuna.distributions.BaseDistribution, value: Any) -> bool:
    from optuna.distributions import CategoricalDistribution

    if isinstance(space, CategoricalDistribution):
        return bool(value in space.choices)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return bool(space._contains(space.to_internal_repr(value)))
