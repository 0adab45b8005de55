"""The folder of a run: where each of its files is, and what the files say.

A single training: ``RUN/  run.json  config.yaml  environment.json  splits.json  labels.tsv  preprocessing.yaml
metrics.jsonl  last/  best/  model/  predictions/  evaluation/``.

A cross-validation: ``RUN/  run.json  config.yaml  splits.json  preprocessing.yaml  fold_0/ ...  predictions/
evaluation/  model/``. Each fold is a run of its own that takes its split and its preprocessing from the cross-validation,
so that it can be resumed, predicted and evaluated like any other run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save

from medseg.config import Config, differences
from medseg.data.datasets.cases import Case
from medseg.data.datasets.splits import Split, read_splits, write_splits
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.fine_tuning.old_labels import write_old_model
from medseg.fine_tuning.start_model import StartedModel
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import FIRST_STAGE
from medseg.model_folder.started_from import NAME as STARTED_FROM
from medseg.model_folder.started_from import StartedFrom
from medseg.runtime.machine import environment
from medseg.storage.atomic import copy_folder, replacing_folder, write_bytes, write_text
from medseg.storage.formats import check_format
from medseg.storage.json_files import read_object
from medseg.storage.lock import NAME as LOCK
from medseg.storage.lock import RunLock
from medseg.train.reports.reporting import METRICS
from medseg.train.training_run import BEST, CHECKPOINTS, MODEL

FORMAT = 1
RECORD = "run.json"
PREPARED = "prepared.json"  # the prepared cases of the run, which `medseg clean` keeps
_CASE_WEIGHTS = "case_weights.json"  # of the training cases, unless all are 1
_REPAIRS = "repairs.yaml"  # a copy of data.repairs
_FIRST_WEIGHTS = "first.safetensors"
_OLD_MODEL = "old_model"
_FOLD = re.compile(r"fold_([0-9]+)")
_BEFORE_CONFIG = {
    LOCK, RECORD, "environment.json", "splits.json", "labels.tsv", "preprocessing.yaml", FIRST_STAGE, _REPAIRS,
    PREPARED, STARTED_FROM, _FIRST_WEIGHTS, _OLD_MODEL, _CASE_WEIGHTS,
}  # fmt: skip


class RunRecord(Config):
    """The contents of ``run.json``: which kind of run a folder holds, and what happened to it.

    Attributes:
        format: Version of the layout of the run folder.
        kind: ``training`` for a single run or a fold, ``cross_validation`` for the folder of all folds.
        extended_at: Steps at which ``medseg train --extend`` continued the finished run.
    """

    format: Literal[1] = 1
    kind: Literal["training", "cross_validation"] = "training"
    extended_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """A run folder, which need not exist yet.

    Attributes:
        path: The folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def absolute(self) -> RunFolder:
        """Return the same folder by its absolute path, for processes that work in other folders."""
        return RunFolder(self.path.absolute())

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def record(self) -> Path:
        """The kind of the run, the version of its layout, and its extensions; written first."""
        return self.path / RECORD

    @property
    def config(self) -> Path:
        """The experiment; written last when a run is opened, so that a folder with it can be resumed."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """The versions and the machine that a training started with."""
        return self.path / "environment.json"

    @property
    def splits(self) -> Path:
        """The split of a single run, or all splits of a cross-validation."""
        return self.path / "splits.json"

    @property
    def labels(self) -> Path:
        """The label table that a training started with."""
        return self.path / "labels.tsv"

    @property
    def preprocessing(self) -> Path:
        """The preprocessing with measured intensities; all folds of a cross-validation share one file."""
        return (self.fold_of or self).path / "preprocessing.yaml"

    @property
    def metrics(self) -> Path:
        """One report per line."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def best(self) -> Path:
        """The model folder with the best validation so far."""
        return self.path / BEST

    @property
    def model(self) -> Path:
        """The model folder of the finished training."""
        return self.path / MODEL

    @property
    def first_stage(self) -> Path:
        """A copy of the first stage's model folder, in the run of a second stage."""
        return self.path / FIRST_STAGE

    @property
    def first_weights(self) -> Path:
        """A copy of the weights that a fine-tuning started with, so that it can be resumed without their source."""
        return self.path / _FIRST_WEIGHTS

    @property
    def old_model(self) -> Path:
        """A copy of the network that teaches its labels with ``train.keep_old_labels``."""
        return self.path / _OLD_MODEL

    @property
    def predictions(self) -> Path:
        """The folder of predicted label maps of held-out cases."""
        return self.path / "predictions"

    @property
    def evaluation(self) -> Path:
        """The folder of tables and summaries."""
        return self.path / "evaluation"

    @property
    def shared_folder(self) -> Path:
        """The folder of what runs share: prepared cases and phantoms; folds use that of their cross-validation."""
        return (self.fold_of or self).path.parent

    @property
    def is_finished(self) -> bool:
        """Whether the training has written its model."""
        return self.model.is_dir()

    @property
    def is_cross_validation(self) -> bool:
        """Whether the folder holds the folds of a cross-validation."""
        return self.record.is_file() and self.read_record().kind == "cross_validation"

    @property
    def fold_of(self) -> RunFolder | None:
        """The cross-validation that this run is a fold of, or None."""
        folder = self.path.absolute()
        parent = RunFolder(folder.parent)
        return parent if _FOLD.fullmatch(folder.name) and parent.is_cross_validation else None

    @property
    def started_folds(self) -> list[int]:
        """The indices of the folds whose folder exists."""
        return sorted(int(f[1]) for path in self.path.glob("fold_*") if (f := _FOLD.fullmatch(path.name)))

    def fold(self, index: int) -> RunFolder:
        """Return the run folder of one fold."""
        return RunFolder(self.path / f"fold_{index}")

    def lock(self) -> RunLock:
        """Return the lock that allows one writer at a time."""
        return RunLock(self.path)

    def read_record(self) -> RunRecord:
        """Read ``run.json``.

        Returns:
            The validated record.

        Raises:
            ConfigError: It was written by a newer medseg, or is not the record of a run.
            DataError: It cannot be read.
        """
        values = read_object(self.record)
        check_format(values.get("format"), FORMAT, self.record, "run folder", error=ConfigError)
        return RunRecord.parse(values, source=str(self.record))

    def write_record(self, record: RunRecord) -> None:
        """Write ``run.json``."""
        write_text(self.record, json.dumps(record.to_plain(), indent=1) + "\n")

    def read_experiment(self) -> ExperimentConfig:
        """Read the experiment of the run.

        Returns:
            The experiment with all settings, as the run was started or last extended.

        Raises:
            ConfigError: The folder is not a run, or was written by a newer medseg.
        """
        self._require_run()
        return ExperimentConfig.load(self.config)

    def read_splits(self, cases: Sequence[Case] | None = None) -> list[Split]:
        """Read the splits of the run.

        Args:
            cases: Labelled cases of the dataset, which the splits may name; None to not check the names.

        Returns:
            One split per fold; a single one if the run is no cross-validation.
        """
        return read_splits(self.splits, cases)

    def read_shared_split(self, cases: Sequence[Case]) -> Split | None:
        """Read the split that the cross-validation has for this run if the run is one of its folds.

        Args:
            cases: Labelled cases of the dataset.

        Returns:
            The split of this fold; None if the run is not a fold.
        """
        whole, fold = self.fold_of, _FOLD.fullmatch(self.path.absolute().name)
        return whole.read_splits(cases)[int(fold[1])] if whole and fold else None

    def read_labels(self) -> Labels:
        """Read the labels that the training started with."""
        return Labels.from_tsv(self.labels)

    def read_preprocessing(self) -> Preprocessing:
        """Read the preprocessing that the training started with."""
        return Preprocessing.load(self.preprocessing)

    def read_started_from(self) -> StartedFrom | None:
        """Read where the first weights came from; None for fresh ones."""
        path = self.path / STARTED_FROM
        return StartedFrom.parse(read_object(path), source=str(path)) if path.is_file() else None

    def keep_case_weights(self, weights: Mapping[str, float]) -> None:
        """Write how often the patches of each training case are sampled, so that a resumed run samples them alike."""
        path = self.path / _CASE_WEIGHTS
        path.unlink(missing_ok=True)  # by a process that was stopped
        if any(weight != 1 for weight in weights.values()):
            write_text(path, json.dumps(dict(weights), indent=1) + "\n")

    def read_case_weights(self) -> dict[str, float]:
        """Read the weights of the training cases by id; cases that are missing have the weight 1."""
        path = self.path / _CASE_WEIGHTS
        return {name: float(weight) for name, weight in read_object(path).items()} if path.is_file() else {}

    def keep_first_weights(self, started: StartedModel, *, with_source: bool) -> None:
        """Write where the first weights came from, and those of a trained model themselves.

        Args:
            started: The model before its first step; nothing is written for fresh weights.
            with_source: Whether the trained model is kept, too, because it teaches its labels.
        """
        for left in (self.path / STARTED_FROM, self.first_weights):  # by a process that was stopped
            left.unlink(missing_ok=True)
        if started.record is not None:
            write_text(self.path / STARTED_FROM, json.dumps(started.record.to_plain(), indent=1) + "\n")
        if started.source is not None:
            state = {name: tensor.cpu().contiguous() for name, tensor in started.model.state_dict().items()}
            write_bytes(self.first_weights, save(state))
            if with_source:
                write_old_model(self.old_model, started.source)

    def check_resumable(self, experiment: ExperimentConfig) -> None:
        """Check that the folder holds this very experiment.

        Args:
            experiment: Experiment to resume.

        Raises:
            ConfigError: The folder holds no run, that of another experiment, or that of a newer medseg.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self}: found no run to resume. Start it without resume.")
        self._require_run()
        stored = ExperimentConfig.load(self.config)
        if stored != experiment:
            raise ConfigError(
                f"{self.config}: differs from the given experiment, expected the same: {differences(experiment, stored)}. "
                "Resume with the run's own config."
            )

    def check_vacant(self) -> None:
        """Check that a training can be started in this folder.

        A folder with a record and without a config was left by a process that was stopped while opening the run.

        Raises:
            ConfigError: The folder holds something else.
        """
        if not self.path.exists():
            return
        if self.path.is_dir():
            present = self._names()
            if present <= {LOCK, PREPARED} or (RECORD in present and present <= _BEFORE_CONFIG):
                return
        found = "other files" if self.path.is_dir() else "a file"
        raise ConfigError(
            f"{self}: found {found}, expected a new or empty folder. Resume the run, or choose another folder."
        )

    def check_vacant_for_folds(self) -> None:
        """Check that a cross-validation can be started in this folder.

        Raises:
            ConfigError: The folder holds anything but what a cross-validation writes before its first fold.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self}: found a file, expected a folder for the folds. Choose another one.")
        present = self._names() if self.path.exists() else set()
        known = {RECORD, "config.yaml", "splits.json", "preprocessing.yaml", _REPAIRS}
        single = "config.yaml" in present and not self.is_cross_validation
        if present - known or single:
            found = "a single run" if single else ", ".join(sorted(present - known)[:3])
            raise ConfigError(
                f"{self}: found {found}, expected a new folder or that of a cross-validation. Choose another folder."
            )

    def open(
        self,
        experiment: ExperimentConfig,
        split: Split,
        labels: Labels,
        preprocessing: Preprocessing,
        first_stage: Path | None = None,
    ) -> None:
        """Write the files that a training starts with; the config last, so that a folder with it can be resumed.

        The measured preprocessing and the labels are kept, because the files of the dataset may change later.

        Args:
            experiment: Experiment of the run.
            split: Its training and held-out cases.
            labels: Its labels.
            preprocessing: Its preprocessing, which a fold shares with its cross-validation.
            first_stage: Model folder of the first stage, copied so that the exported model does not depend on it; None
                without a cascade.
        """
        self.write_record(RunRecord())
        write_text(self.environment, json.dumps(environment(), indent=1, sort_keys=True) + "\n")
        shutil.rmtree(self.first_stage, ignore_errors=True)  # left by a process that was stopped
        if first_stage is not None:
            with replacing_folder(self.first_stage) as temporary:
                copy_folder(first_stage, temporary)
        write_splits([split], self.splits)
        write_text(self.labels, labels.to_tsv())
        if self.fold_of is None:
            write_text(self.preprocessing, preprocessing.to_yaml())
        self._keep_repairs(experiment)
        self.write_config(experiment)

    def open_for_folds(
        self, experiment: ExperimentConfig, splits: Sequence[Split], preprocessing: Preprocessing
    ) -> None:
        """Write the files that all folds of a cross-validation share; the config last.

        Args:
            experiment: Experiment of all folds.
            splits: One per fold.
            preprocessing: Preprocessing of all folds.
        """
        self.write_record(RunRecord(kind="cross_validation"))
        write_splits(splits, self.splits)
        write_text(self.preprocessing, preprocessing.to_yaml())
        self._keep_repairs(experiment)
        self.write_config(experiment)

    def _keep_repairs(self, experiment: ExperimentConfig) -> None:
        """Keep a copy of the repairs with which the data were read."""
        if experiment.data.repairs is not None:
            write_text(self.path / _REPAIRS, Path(experiment.data.repairs).read_text(encoding="utf-8"))

    def write_config(self, experiment: ExperimentConfig) -> None:
        """Write ``config.yaml``."""
        write_text(self.config, experiment.to_yaml())

    def _require_run(self) -> None:
        if not (self.record.is_file() and self.config.is_file() and self.splits.is_file()):
            raise ConfigError(
                f"{self}: found no run ({RECORD}, config.yaml, splits.json). Give a folder written by medseg train."
            )
        self.read_record()

    def _names(self) -> set[str]:
        return {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
