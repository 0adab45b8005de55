"""From an experiment to a trainer: dataset, split, measured preprocessing, prepared patches, model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file

from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.splits import Split
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.prepare_cases import CaseStore, ImageType, stored_or_raise
from medseg.data.patches.sampling import PatchSampler, require_sampled
from medseg.data.preprocessing.normalize import mask_rows
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.preprocessing.training_data import TrainingData
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ConfigError, DataError
from medseg.experiment.extend import Extension, plan_extension
from medseg.experiment.first_stage import (
    check_first_stage,
    first_stage_labels,
    first_stage_run,
    require_label_maps,
)
from medseg.experiment.mirroring import resolve_mirroring
from medseg.experiment.preflight import check_learnable, check_patch, check_space
from medseg.experiment.prepared_cases import STORE, store_in_use, write_prepared
from medseg.experiment.resolve_data import (
    choose_split,
    find_dataset,
    label_sets_of,
    labels_of,
    preparation_executor,
    resolve_preprocessing,
    with_absolute_paths,
)
from medseg.experiment.training_warnings import warn_of_cases
from medseg.fine_tuning.network_ends import Ends, input_names
from medseg.fine_tuning.old_labels import OldLabels, check_same_images
from medseg.fine_tuning.start_model import StartedModel, published_record, start_from
from medseg.fine_tuning.weight_source import WeightSource, read_model_folder
from medseg.inference.postprocess import component_groups
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.model_folder.card_settings import CardSettings
from medseg.model_folder.folder import load_weights
from medseg.model_folder.licences import licence_in
from medseg.model_folder.settings import SavedModel
from medseg.model_folder.started_from import StartedFrom
from medseg.models.base import Model
from medseg.runtime.machine import installed_version
from medseg.storage.atomic import make_folder
from medseg.train.batches import TrainingPatches
from medseg.train.checkpoint import has_checkpoint
from medseg.train.distributed_training import Distributed
from medseg.train.reports.loggers import check_loggers
from medseg.train.trainer import ENDLESS, Trainer
from medseg.train.training_run import TrainingRun

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig
    from medseg.experiment.run_folder import RunFolder
    from medseg.runtime.progress import Progress


@dataclass(frozen=True)
class TrainingSetup:
    """The steps from an experiment to a trainer, each computed once, when it is first needed.

    Some steps involve all processes, which therefore take the steps in the same order.

    Attributes:
        experiment: The experiment, with absolute paths.
        run: The run folder.
        processes: The processes that train together.
        resume: Whether the run exists and continues from its last checkpoint.
        extension: The later end of a finished run, or None.
        progress: Called with (done, total, case id) as cases are measured and prepared; None for no progress.
        cluster: Dask cluster on which cases are measured and prepared; None for the machines that train.
    """

    experiment: ExperimentConfig
    run: RunFolder
    processes: Distributed
    resume: bool = False
    extension: Extension | None = None
    progress: Progress | None = None
    cluster: str | None = None

    @classmethod
    def start(
        cls,
        experiment: ExperimentConfig,
        run: RunFolder,
        *,
        resume: bool = False,
        extend: str | None = None,
        progress: Progress | None = None,
        cluster: str | None = None,
    ) -> Self:
        """Start the processes and check the run folder.

        Args:
            experiment: Experiment to train.
            run: Run folder, new unless `resume`.
            resume: Continue from the last checkpoint.
            extend: Steps or time in addition to those of a finished run; None for no extension.
            progress: Called with (done, total, case id) as cases are measured and prepared.
            cluster: Dask cluster on which cases are measured and prepared; None for the machines that train.

        Returns:
            The setup; nothing has been written yet.

        Raises:
            ConfigError: The folder does not fit the request, another process trains in it, or the run cannot be
                extended.
        """
        experiment = with_absolute_paths(experiment)
        processes = Distributed(experiment.train, experiment.model.spatial_dims)
        if processes.is_main:
            run.check_resumable(experiment) if resume else run.check_vacant()
            run.lock().check()
        extension = None
        if extend is not None:
            extension = processes.broadcast(lambda: plan_extension(experiment, run, extend))
        chosen = extension.experiment if extension else experiment
        return cls(chosen, run, processes, resume, extension, progress, cluster)

    def trainer(self) -> Trainer:
        """Prepare the data, open the run folder, and return the trainer.

        Returns:
            The trainer; iterate over it to train.

        Raises:
            ConfigError: The experiment cannot be trained.
            DataError: The dataset cannot be used.
        """
        self.check()
        with store_in_use(self._store):
            stored = {case.id: case for case in self._prepare()}
            train = [stored[case] for case in self.split.train]
            held_out = [stored[case] for case in self.split.validation]
            self._check_prepared(train)
            if self.processes.is_main:
                taught = () if self.old_labels is None else self.old_labels.taught(self.labels)
                warn_of_cases(self.dataset, self.split, self.labels, train, held_out, taught)
                self._write_run([*train, *held_out])
        validates = self.experiment.train.validation_batches > 0 and len(held_out) > 0
        trainer = Trainer(
            self.model,
            TrainingPatches(
                self._patches(train, self.augmentation), self._patches(held_out, None) if validates else None
            ),
            self._training_run(train),
            settings=self.experiment.train,
            label_sets=self.label_sets,
            seed=self.experiment.seed,
            distributed=self.processes,
            resume=self.resume,
        )
        return self._taught(trainer)

    def _taught(self, trainer: Trainer) -> Trainer:
        """Return the trainer, with the network that teaches its labels if there is one."""
        if self.old_labels is not None:
            trainer.keep_old_labels(self.old_labels)
        return trainer

    def _training_run(self, train: list[StoredCase]) -> TrainingRun:
        described, settings = self._described_model(train), self.experiment.to_plain()
        return TrainingRun(self.run.path, described, self.labels, self._extensions, settings)

    def check(self) -> None:
        """Refuse what can be refused before the data are prepared, which may take hours.

        Raises:
            ConfigError: The experiment cannot be trained.
            DataError: The dataset cannot be used.
        """
        component_groups(self.experiment.predict, self.labels)  # refuses unknown names
        check_loggers(self.experiment.train.loggers)
        _ = (
            self.label_sets,
            self.augmentation,
            self.split,
            self.first_stage,
            self.case_weights,
        )  # each refuses what it cannot use
        if not self.resume:
            check_patch(self.experiment, self.in_channels, self.labels)
        used = self.dataset.subset((*self.split.train, *self.split.validation)).cases
        soft = any(case.probabilities is not None for case in used)
        check_learnable(self.experiment, self.model, self.label_sets, soft_labels=soft)
        _ = self.preprocessing, self.slice_view, self.old_labels

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset."""
        with self.processes.main_first():
            return find_dataset(self.experiment, self.run.shared_folder)

    @cached_property
    def labels(self) -> Labels:
        """The labels; a resumed run keeps those that it started with."""
        return self.run.read_labels() if self.resume else labels_of(self.experiment, self.dataset)

    @cached_property
    def label_sets(self) -> LabelSets:
        """The classes that each value of a prepared label map may stand for."""
        return label_sets_of(self.labels, self.dataset)

    @cached_property
    def augmentation(self) -> Augmentation:
        """The augmentation with its mirror axes and its device chosen."""
        chosen = resolve_mirroring(self.experiment, self.labels)
        if chosen.device != "auto":
            return chosen
        on_cuda = self.processes.fabric.device.type == "cuda"
        return chosen.replace(device="device" if on_cuda else "worker")

    @cached_property
    def split(self) -> Split:
        """The training and held-out cases; a resumed run keeps them, although cases may have been added since."""
        cases = self.dataset.labelled_cases
        if self.resume:
            return self.run.read_splits(cases)[0]
        return self.run.read_shared_split(cases) or choose_split(self.experiment, self.dataset)

    @cached_property
    def case_weights(self) -> dict[str, float]:
        """The weights of the training cases by id; a resumed run keeps them, although the table may have changed since."""
        stored = self.run.read_case_weights() if self.resume else None
        cases = self.dataset.subset(self.split.train).cases
        weights = {case.id: case.weight if stored is None else stored.get(case.id, 1.0) for case in cases}
        require_sampled(weights.values())
        return weights

    @cached_property
    def first_stage(self) -> Labels | None:
        """The labels of the first stage, once all of its label maps are found; None without a cascade."""
        cascade = self.experiment.cascade
        if cascade is None:
            return None
        cases = self.dataset.subset((*self.split.train, *self.split.validation)).cases
        if not self.resume:
            return check_first_stage(cascade, self.dataset, cases)
        require_label_maps(first_stage_run(cascade), cases)
        return first_stage_labels(self.run)

    @property
    def num_first_stage_labels(self) -> int:
        """The number of foreground labels of the first stage; 0 without a cascade."""
        return 0 if self.first_stage is None else len(self.first_stage.foreground)

    @property
    def in_channels(self) -> int:
        """The number of channels that the model sees."""
        image_channels = self.experiment.slices.num_channels(len(self.dataset.channel_names))
        return image_channels + self.num_first_stage_labels

    @property
    def model(self) -> Model:
        """The model with its first weights."""
        return self.started.model

    @cached_property
    def started(self) -> StartedModel:
        """The model with fresh weights, or with those that the experiment names, and where they come from.

        The source is not read, and need not exist, if the run has a copy of its first weights or a checkpoint.
        """
        choice, classes = self.experiment.model, self.labels.num_outputs
        fresh = choice.with_fresh_weights()
        record = self.run.read_started_from() if self.resume else None
        torch.manual_seed(self.experiment.seed)
        if self.resume and (has_checkpoint(self.run.checkpoints) or self.run.first_weights.is_file()):
            model = fresh.build(self.in_channels, classes)
            if not has_checkpoint(self.run.checkpoints):
                load_weights(model, load_file(self.run.first_weights), self.run.first_weights)
            return StartedModel(model, record)
        source = choice.trained_source
        if source is None:
            model = choice.build(self.in_channels, classes)
            loaded = model.loaded_weights
            shown = str(choice.to_shared().get("weights"))
            return StartedModel(model, None if loaded is None else published_record(loaded, shown))
        model = fresh.build(self.in_channels, classes)
        return start_from(model, fresh.build, self.ends, source, choice.adapt, choice.published_name)

    @cached_property
    def old_labels(self) -> OldLabels | None:
        """The network that teaches its labels, read from the copy in a resumed run; None without it."""
        if not self.experiment.train.keep_old_labels:
            return None
        source = read_model_folder(self.run.old_model) if self.resume else self.started.source
        if source is None:
            raise ConfigError(
                "train.keep_old_labels: found true without the weights of a trained model, expected its folder in "
                "model.weights. Set both, or none."
            )
        self._check_old_model(source)
        return OldLabels.of(source, self.ends, self.experiment.model.adapt, self.label_sets)

    def _check_old_model(self, source: WeightSource) -> None:
        """Raise `ConfigError` unless the old network sees the images of the new one."""
        experiment, saved = self.experiment, source.saved
        check_same_images(source, self.preprocessing, self.dataset.channel_names)
        flat = experiment.model.spatial_dims == 2
        slices = experiment.slices, experiment.patch.slice_axis
        other_slices = flat and saved is not None and (saved.slices, saved.slice_axis) != slices
        if source.weights.dims != experiment.model.spatial_dims or other_slices:
            raise ConfigError(
                f"train.keep_old_labels: found another number of axes or other slices than {source.path} has, expected the same. "
                "Set it to false, or take the model, slices and patch.slice_axis of the source."
            )

    @property
    def ends(self) -> Ends:
        """The names of the channels and outputs of the model."""
        stage = () if self.first_stage is None else tuple(label.name for label in self.first_stage.foreground)
        inputs = input_names(self.dataset.channel_names, self.experiment.slices, stage)
        return Ends(inputs, self.labels.output_names, bool(self.labels.regions))

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The measured preprocessing: that of the run, of all folds of a cross-validation, or a new one."""
        if self.resume or self.run.fold_of is not None:
            return self.run.read_preprocessing()
        return self.processes.broadcast(
            lambda: resolve_preprocessing(
                self.experiment, self.dataset, self.labels, self.split.train, self.progress, self.cluster
            )
        )

    @cached_property
    def slice_view(self) -> SliceView | None:
        """The view of a 2D model on slices, refused if the intensities do not allow it; None for a 3D model."""
        slices, axis = self.experiment.slices, self.experiment.patch.slice_axis
        if self.experiment.model.spatial_dims == 3:
            return None
        return SliceView.from_preprocessing(slices, axis, self.preprocessing)

    @cached_property
    def saved_model(self) -> SavedModel:
        """The settings of the model folder that the training writes."""
        experiment = self.experiment
        axis = experiment.patch.slice_axis
        return SavedModel(
            medseg=installed_version(),
            name=experiment.name,
            model=experiment.model.to_shared(),
            channel_names=self.dataset.channel_names,
            preprocessing=self.preprocessing,
            window=experiment.slices.window(experiment.patch.window(), axis),
            slice_axis=axis,
            slices=experiment.slices,
            num_first_stage_labels=self.num_first_stage_labels,
            predict=experiment.predict,
            started_from=self._origin,
            card=self._card,
            absent_channels=experiment.data.absent_channels,
            trained_on=self._trained_on,
        )

    @property
    def _trained_on(self) -> dict[str, Any]:
        """The facts about the training for the model card."""
        train = self.experiment.train
        return {
            "dataset": self.dataset.name,
            "training_cases": len(self.split.train),
            "held_out_cases": len(self.split.validation),
            "steps": train.steps,
            "batch_size": train.batch_size,
            "seed": self.experiment.seed,
        }

    @property
    def _origin(self) -> StartedFrom | None:
        """Where the first weights come from, with the licence that the experiment states if the source states none."""
        record, stated = self.started.record, self.experiment.card.weights_licence
        if record is None or record.licence is not None or stated is None:
            return record
        return record.replace(licence=stated)

    @property
    def _card(self) -> CardSettings:
        """The settings of the model card, with the licence that the dataset states if the experiment states none."""
        card = self.experiment.card
        if card.dataset_licence is not None:
            return card
        return card.replace(dataset_licence=licence_in(self.dataset.root / "dataset.json"))

    def _described_model(self, train: list[StoredCase]) -> SavedModel:
        """Return the settings of the model folder with the record of the training images."""
        data = TrainingData.from_images([case.measures for case in train])
        return self.saved_model.replace(training_data=data.to_plain())

    @property
    def _image_type(self) -> ImageType:
        chosen = self.experiment.preprocess.stored_as
        if chosen != "auto":
            return chosen
        return "float16" if self.processes.precision == "float16" else "float32"

    @property
    def _store(self) -> Path:
        return self.run.shared_folder / STORE

    def _prepare(self) -> list[StoredCase]:
        """Return all prepared cases from a store that runs in the same folder share.

        Each process prepares a part of them, or the main process has all of them prepared on a cluster.
        """
        cases = self.dataset.subset((*self.split.train, *self.split.validation)).cases
        folder = self._store
        check_space(folder, cases, self.preprocessing)
        store = CaseStore(folder, self.preprocessing, self.label_sets, self.first_stage, self._image_type)
        executor = preparation_executor(self.experiment, self.cluster)
        own = cases[self.processes.rank :: self.processes.size]
        if self.cluster is not None:
            own = cases if self.processes.is_main else ()
        parts = self.processes.gather(lambda: store.outcomes(own, executor, self.progress))
        prepared = stored_or_raise(folder, [outcome for part in parts for outcome in part])
        lost = {case.id for case in prepared if not case.folder.is_dir()}  # on the disk of another machine
        executor = preparation_executor(self.experiment)
        here = store.fill([case for case in cases if case.id in lost], executor) if lost else []
        return [*(case for case in prepared if case.id not in lost), *here]

    def _check_prepared(self, cases: list[StoredCase]) -> None:
        """Refuse training cases without foreground, and a 3D model for single slices, mostly padding to it."""
        if not any(case.has_foreground for case in cases):
            raise DataError(
                f"{self.dataset.root}: found no voxel of a label in any of the {len(cases)} training cases, expected some "
                "to learn from. Check the label maps and data.labels."
            )
        window = self.experiment.patch.window()
        for axis, name in enumerate("XYZ"):
            if len(window) == 3 and window[axis] > 1 and all(case.shape[axis] == 1 for case in cases):
                raise ConfigError(
                    f"patch.size: found {window[axis]} along {name}, expected 1, because all cases are single slices across "
                    f"{name}. Take a 2D model, such as {self.experiment.model.name.replace('_3d', '_2d')}."
                )

    def _patches(self, cases: list[StoredCase], augmentation: Augmentation | None) -> PatchDataset:
        """Return augmented patches for training, or plain ones for validation if `augmentation` is None."""
        experiment, training = self.experiment, augmentation is not None
        train, cascade = experiment.train, experiment.cascade
        batches = (train.steps or ENDLESS) if training else train.validation_batches
        batch_size = train.batch_size * self.processes.size * (train.gradient_accumulation if training else 1)
        first_stage = None
        if cascade is not None:
            perturb = cascade.perturb if training else None
            first_stage = FirstStageChannels(self.num_first_stage_labels, perturb)
        return PatchDataset(
            PatchSampler(
                cases,
                experiment.patch.window(),
                batch_size,
                train.oversample_foreground,
                [self.case_weights[case.id] for case in cases] if training else None,
            ),
            length=batches * batch_size,
            seed=experiment.seed,
            stream="train" if training else "validation",
            augmentation=augmentation,
            view=self.slice_view,
            first_stage=first_stage,
            mask_rows=mask_rows(self.preprocessing.channels),
        )

    @property
    def _extensions(self) -> int:
        if self.extension is not None:
            return len(self.extension.record.extended_at)
        return len(self.run.read_record().extended_at) if self.resume else 0

    def _write_run(self, cases: list[StoredCase]) -> None:
        """Write the new end of an extended run, or open a new run.

        Another process may have opened it while the data were prepared, so it is checked again with the lock held.
        """
        if self.extension is not None:
            self.extension.write(self.run)
        if self.resume:
            write_prepared(self.run.path, cases)
            return
        make_folder(self.run.path)
        with self.run.lock():
            self.run.check_vacant()
            write_prepared(self.run.path, cases)
            cascade = self.experiment.cascade
            stage = first_stage_run(cascade).model if cascade is not None else None
            self.run.keep_case_weights(self.case_weights)
            self.run.keep_first_weights(self.started, with_source=self.experiment.train.keep_old_labels)
            self.run.open(self.experiment, self.split, self.labels, self.preprocessing, stage)
