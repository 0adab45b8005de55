"""From an experiment to a trainer: dataset, split, measured preprocessing, prepared patches, model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.data.datasets.splits import Split, k_fold, read_splits
from medseg.data.patches.case_store import StoredCase, fill_store
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.sampling import PatchSampler
from medseg.data.preprocessing.channel_methods import resolve_methods
from medseg.data.preprocessing.normalize import measure
from medseg.data.preprocessing.prepare import Preprocessing, check_image
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ConfigError, DataError
from medseg.experiment.extend import extended
from medseg.experiment.first_stage import check_first_stage, first_stage_labels, require_label_maps
from medseg.experiment.fold_folders import (
    cross_validation_of,
    shared_folder,
    shared_preprocessing,
    shared_split,
)
from medseg.experiment.mirroring import resolve_mirroring
from medseg.experiment.preflight import check_learnable, check_patch
from medseg.experiment.run_folder import (
    check_run,
    find_dataset,
    label_sets_of,
    labels_of,
    open_run,
    save_config,
    saved_labels,
    saved_preprocessing,
)
from medseg.inference.postprocess import component_groups
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.storage.atomic import make_folder
from medseg.storage.lock import RunLock
from medseg.train.checkpoint import has_checkpoint
from medseg.train.distributed_training import Distributed
from medseg.train.trainer import ENDLESS, Trainer
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig
    from medseg.runtime.progress import Progress


def make_trainer(
    experiment: ExperimentConfig, run: Path, *, resume: bool, extend: str | None, progress: Progress | None
) -> Trainer:
    """See `Experiment.trainer`. What can be refused is refused before the data are prepared."""
    experiment = with_absolute_paths(experiment)
    team = Distributed(experiment.train)
    if team.is_main:
        check_run(experiment, run, resume=resume)
        RunLock(run).check()
    if extend is not None:
        _refuse_fold(run)
        given = experiment
        experiment = team.broadcast(lambda: extended(given, run, extend))
    with team.main_first():
        dataset = find_dataset(experiment, run)
    labels = (saved_labels(run) if resume else None) or labels_of(experiment, dataset)
    component_groups(experiment.predict, labels)  # refuses unknown names
    label_sets = label_sets_of(labels, dataset)
    augmentation = resolve_mirroring(experiment, labels)
    split = _split_of(experiment, dataset, run, resume=resume)
    stage = _first_stage_labels(experiment, dataset, split, run, resume=resume)
    added = 0 if stage is None else len(stage.foreground)
    channels = experiment.slices.num_channels(len(dataset.channel_names)) + added
    if not resume:
        check_patch(experiment, channels, labels)
    torch.manual_seed(experiment.seed)
    # What a checkpoint replaces is not read again, and need not be there any more.
    choice = (
        experiment.model.without_pretrained() if resume and has_checkpoint(run / "last") else experiment.model
    )
    model = choice.build(channels, labels.num_outputs)
    check_learnable(experiment, model, label_sets)
    preprocessing = _kept_preprocessing(run, resume=resume) or team.broadcast(
        lambda: resolve_preprocessing(experiment, dataset, labels, split)
    )
    patches = partial(_patches, experiment, team.size, _slice_view(experiment, preprocessing), added)
    prepared = partial(
        _prepared, run, label_sets=label_sets, settings=preprocessing, first_stage=stage, progress=progress
    )
    with team.main_first():
        train = prepared(dataset.subset(split.train).cases)
        held_out = prepared(dataset.subset(split.validation).cases)
    _require_foreground(train, dataset)
    _require_depth(experiment, train)
    if team.is_main and not resume:
        _open(experiment, run, split, labels, preprocessing)
    if team.is_main and extend is not None:
        save_config(experiment, run)
    validates = experiment.train.validation_batches > 0 and len(held_out) > 0
    return Trainer(
        model,
        patches(train, augmentation),
        patches(held_out, None) if validates else None,
        settings=experiment.train,
        labels=labels,
        label_sets=label_sets,
        saved=_saved_model(experiment, dataset, labels, split, preprocessing, added),
        run=run,
        seed=experiment.seed,
        distributed=team,
        resume=resume,
    )


def _kept_preprocessing(run: Path, *, resume: bool) -> Preprocessing | None:
    """What the folds of a cross-validation share, or what a resumed run began with; None to measure."""
    return shared_preprocessing(run) or (saved_preprocessing(run) if resume else None)


def _open(
    experiment: ExperimentConfig, run: Path, split: Split, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Open the run, unless another process has done so while the data were prepared: one lock, one look."""
    make_folder(run)
    with RunLock(run):
        check_run(experiment, run, resume=False)
        open_run(experiment, run, split, labels, preprocessing)


def _split_of(experiment: ExperimentConfig, dataset: Dataset, run: Path, *, resume: bool) -> Split:
    """The cases of a run; a resumed one keeps them, whatever has been added to the dataset since."""
    if resume:
        return read_splits(run / "splits.json", dataset.labelled_cases)[0]
    return shared_split(run, dataset.labelled_cases) or choose_split(experiment, dataset)


def _require_foreground(cases: list[StoredCase], dataset: Dataset) -> None:
    if not any(case.has_foreground for case in cases):
        raise DataError(
            f"{dataset.root}: found no voxel of a label in any of the {len(cases)} training cases, expected some to learn "
            "from. Check the label maps and data.labels."
        )


def _require_depth(experiment: ExperimentConfig, cases: list[StoredCase]) -> None:
    """Refuse a 3-D model for single slices, whose patches would be nearly all padding."""
    window = experiment.patch.window()
    for axis, name in enumerate("XYZ"):
        if len(window) == 3 and window[axis] > 1 and all(case.shape[axis] == 1 for case in cases):
            raise ConfigError(
                f"patch.size: found {window[axis]} along {name}, expected 1, because all cases are single slices across {name}. "
                f"Take a 2-D model, such as {experiment.model.name.replace('_3d', '_2d')}."
            )


def _first_stage_labels(
    experiment: ExperimentConfig, dataset: Dataset, split: Split, run: Path, *, resume: bool
) -> Labels | None:
    """The labels of the earlier stage, after a check that all of it is there; None where there is none."""
    if experiment.cascade is None:
        return None
    cases = dataset.subset((*split.train, *split.validation)).cases
    if not resume:
        return check_first_stage(experiment.cascade, dataset, cases)
    require_label_maps(Path(experiment.cascade.first_stage), cases)
    return first_stage_labels(run)


def choose_split(experiment: ExperimentConfig, dataset: Dataset) -> Split:
    """The fold of the experiment, from its splits file or by subject; or all cases, and none held out."""
    data = experiment.data
    if data.fold == "all":
        return Split(train=tuple(case.id for case in dataset.labelled_cases), validation=())
    splits = all_splits(experiment, dataset)
    if data.fold >= len(splits):
        raise ConfigError(
            f"{data.splits}: found {len(splits)} folds, expected more than data.fold={data.fold}."
        )
    return splits[data.fold]


def all_splits(experiment: ExperimentConfig, dataset: Dataset) -> list[Split]:
    """Every fold of the experiment, from its splits file or by subject."""
    data = experiment.data
    if data.splits is None:
        return k_fold(dataset.labelled_cases, data.folds, experiment.seed)
    return read_splits(data.splits, dataset.labelled_cases)


def resolve_preprocessing(
    experiment: ExperimentConfig, dataset: Dataset, labels: Labels, split: Split
) -> Preprocessing:
    """Preprocessing with everything measured that the training cases must tell."""
    chosen = experiment.preprocess
    methods = resolve_methods(chosen.normalize, dataset.channel_names)
    pairs = _pairs(dataset.subset(split.train).cases, len(methods), labels)
    return Preprocessing(
        orientation=chosen.orientation,
        spacing=chosen.spacing,
        crop_to_nonzero=chosen.crop_to_nonzero,
        channels=measure(pairs, methods, experiment.seed),
    )


def _pairs(cases: tuple[Case, ...], channels: int, labels: Labels) -> Iterator[tuple[Volume, Volume]]:
    """Image and class indices of each case, checked before anything is measured on them.

    Voxels to ignore count as background, because nobody knows that they are foreground.
    """
    for case in cases:
        image = read_case_image(case)
        check_image(image, channels, where=f"case {case.id}")
        label = read_case_label(case, labels, image.grid)
        yield image, label.with_data(label.data * (label.data < len(labels)))


def _refuse_fold(run: Path) -> None:
    if cross_validation_of(run) is not None:
        raise ConfigError(
            f"{run}: found a fold of a cross-validation, expected a single run to extend, because all folds are trained "
            "alike. Train longer in a new folder."
        )


def with_absolute_paths(experiment: ExperimentConfig) -> ExperimentConfig:
    """The same experiment, so that the run can be resumed and predicted from any folder."""
    data = experiment.data
    found = {key: str(Path(value).resolve()) for key in ("path", "splits") if (value := getattr(data, key))}
    model = experiment.model.to_plain()
    weights = model.get("weights")
    if weights is not None and Path(weights).is_file():  # and not a name of published weights
        model["weights"] = str(Path(weights).resolve())
    changed: dict[str, Any] = {"data": data.replace(**found).to_plain(), "model": model}
    if experiment.cascade is not None:
        stage = str(Path(experiment.cascade.first_stage).resolve())
        changed["cascade"] = experiment.cascade.replace(first_stage=stage).to_plain()
    return experiment.replace(**changed)


def _prepared(
    run: Path,
    cases: tuple[Case, ...],
    *,
    label_sets: LabelSets,
    settings: Preprocessing,
    first_stage: Labels | None,
    progress: Progress | None,
) -> list[StoredCase]:
    """Prepared cases in a store that runs of the same folder share."""
    stored: list[StoredCase] = []
    store = fill_store(
        shared_folder(run) / ".prepared", cases, label_sets.labels, settings, label_sets, first_stage
    )
    for number, case in enumerate(store, start=1):
        stored.append(case)
        if progress is not None:
            progress(number, len(cases), case.id)
    return stored


def _slice_view(experiment: ExperimentConfig, preprocessing: Preprocessing) -> SliceView | None:
    """Return the view of a 2-D model on slices, or None for a 3-D model.

    Raises:
        ConfigError: The intensities or the orientation do not allow the view.
    """
    if experiment.model.spatial_dims == 3:
        return None
    return SliceView.from_preprocessing(experiment.slices, experiment.patch.slice_axis, preprocessing)


def _patches(
    experiment: ExperimentConfig,
    processes: int,
    view: SliceView | None,
    num_first_stage_labels: int,
    cases: list[StoredCase],
    augmentation: Augmentation | None,
) -> PatchDataset:
    """Patches for training, augmented; or for validation, as they are."""
    train, training = experiment.train, augmentation is not None
    batches = (train.steps or ENDLESS) if training else train.validation_batches
    batch_size = train.batch_size * processes * (train.gradient_accumulation if training else 1)
    first_stage = None
    if experiment.cascade is not None:
        spoiled = experiment.cascade.perturb if training else None
        first_stage = FirstStageChannels(num_first_stage_labels, spoiled)
    return PatchDataset(
        PatchSampler(cases, experiment.patch.window(), batch_size, train.oversample_foreground),
        length=batches * batch_size,
        seed=experiment.seed,
        stream="train" if training else "validation",
        augmentation=augmentation,
        view=view,
        first_stage=first_stage,
    )


def _saved_model(
    experiment: ExperimentConfig,
    dataset: Dataset,
    labels: Labels,
    split: Split,
    preprocessing: Preprocessing,
    num_first_stage_labels: int,
) -> SavedModel:
    return SavedModel(
        medseg=version("medseg"),
        name=experiment.name,
        model=experiment.model.to_plain(),
        channel_names=dataset.channel_names,
        preprocessing=preprocessing,
        window=experiment.slices.window(experiment.patch.window(), experiment.patch.slice_axis),
        slice_axis=experiment.patch.slice_axis,
        slices=experiment.slices,
        num_first_stage_labels=num_first_stage_labels,
        predict=experiment.predict,
        trained_on={
            "dataset": dataset.name,
            "training_cases": len(split.train),
            "held_out_cases": len(split.validation),
            "steps": experiment.train.steps,
            "batch_size": experiment.train.batch_size,
            "seed": experiment.seed,
        },
    )
