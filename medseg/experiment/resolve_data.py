"""The choices that an experiment leaves to its dataset: labels, splits, and measured preprocessing."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.cases import Dataset, require_each_channel
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.datasets.splits import Split, k_fold, read_splits
from medseg.data.fingerprint.training_intensities import training_intensities
from medseg.data.preprocessing.channel_methods import resolve_methods
from medseg.data.preprocessing.normalize import normalizations
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import ChannelIntensities, RegionSettings
from medseg.errors import ConfigError, DataError, did_you_mean
from medseg.experiment.first_stage import with_first_stage
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.models.pretrained.config import COLOURS
from medseg.runtime.progress import Progress

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig


def with_absolute_paths(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with absolute paths, so that its run can be resumed and predicted from any folder."""
    data = experiment.data
    found = {
        key: str(Path(value).resolve())
        for key in ("path", "splits", "files_root", "repairs", "fingerprint")
        if (value := getattr(data, key))
    }
    model = experiment.model.to_plain()
    weights = model.get("weights")
    if weights is not None and Path(weights).exists():  # else it is a name of published weights
        model["weights"] = _absolute(Path(weights))
    changed: dict[str, Any] = {"data": data.replace(**found).to_plain(), "model": model}
    if experiment.cascade is not None:
        stage = str(Path(experiment.cascade.first_stage).resolve())
        changed["cascade"] = experiment.cascade.replace(first_stage=stage).to_plain()
    return experiment.replace(**changed)


def _absolute(path: Path) -> str:
    """Return an absolute path that keeps the name of a file, because the cache of the hub has links to nameless files."""
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def find_dataset(experiment: ExperimentConfig, folder: Path) -> Dataset:
    """Read the dataset, or create the phantoms unless they exist.

    Args:
        experiment: Experiment that names the dataset. In a cascade, labelled cases get the path of the label map that
            the first stage predicted for them.
        folder: Folder for phantoms, `RunFolder.shared_folder`.

    Returns:
        The dataset with the annotated labels of ``data.partially_annotated`` and the weights of ``data.case_weights``.

    Raises:
        ConfigError: The experiment names no dataset, or annotated labels or weights of cases that do not exist.
        DataError: The dataset cannot be read.
    """
    data = experiment.data
    found = _read_or_create(experiment, folder)
    found = _with_fields(found, "partially_annotated", "annotated", data.partially_annotated)
    found = _with_fields(found, "case_weights", "weight", data.case_weights)
    return with_first_stage(found, experiment.cascade)


def _read_or_create(experiment: ExperimentConfig, folder: Path) -> Dataset:
    data = experiment.data
    if data.path is not None:
        found = read_dataset(data.path, layout=data.layout, reading=data.reading)
        return found.with_instance_maps("data.instances") if data.instances else found
    if data.phantom is None:
        raise ConfigError("data.path: missing. Give the dataset with --data PATH or data.path=PATH.")
    modality, cases, seed = data.phantom.modality, data.phantom.cases, data.phantom.seed
    target = folder / f"phantom_{modality}_{cases}_{seed}"
    if (target / "dataset.json").is_file():  # written last, so the images are complete
        found = read_dataset(target)
        if (found.name, len(found.cases)) == (f"phantom_{modality}", cases):
            return found
    return write_phantoms(target, cases=cases, modality=modality, seed=seed)


def _with_fields(dataset: Dataset, key: str, field: str, values: Mapping[str, Any]) -> Dataset:
    """Return the dataset with a field of its cases set, as a key of the config states it by id or pattern."""
    cases = {case.id: case for case in dataset.cases}
    for pattern, value in values.items():
        matching = fnmatch.filter(cases, pattern)
        if not matching:
            raise ConfigError(
                f"data.{key}: no case matches {pattern!r}.{did_you_mean(pattern, cases)} Give a case id, "
                "or a pattern such as liver_*."
            )
        cases |= {case_id: replace(cases[case_id], **{field: value}) for case_id in matching}
    return replace(dataset, cases=tuple(cases.values())) if values else dataset


def labels_of(experiment: ExperimentConfig, dataset: Dataset) -> Labels:
    """Return the labels, regions and ignore value that the experiment names, or else those of the dataset.

    Args:
        experiment: Experiment with the settings.
        dataset: Its dataset.

    Returns:
        Labels that the network learns.

    Raises:
        DataError: Neither names labels, or regions or the ignore value do not fit them.
    """
    data = experiment.data
    labels = dataset.labels if data.labels is None else Labels.from_names(data.labels)
    if labels is None:
        raise DataError(
            f"{dataset.root}: found no names of labels. Add labels.tsv (value, name), or data.labels to the config."
        )
    if data.ignore is not None:
        labels = replace(labels, ignore=data.ignore)
    if data.regions is None:
        return labels
    values = {
        name: region.values if isinstance(region, RegionSettings) else region
        for name, region in data.regions.items()
    }
    output_values = {
        name: region.output_value
        for name, region in data.regions.items()
        if isinstance(region, RegionSettings)
    }
    return labels.with_regions(values, output_values)


def label_sets_of(labels: Labels, dataset: Dataset) -> LabelSets:
    """Return the classes that each value of a prepared label map may stand for, over all labelled cases.

    Args:
        labels: Labels that the network learns.
        dataset: Dataset with the annotated labels of each case.

    Returns:
        The label sets; without sets if every case is fully annotated and no label is ignored.

    Raises:
        DataError: The annotated labels of a case include an unknown name.
    """
    return LabelSets.from_annotations(labels, {case.id: case.annotated for case in dataset.labelled_cases})


def choose_split(experiment: ExperimentConfig, dataset: Dataset) -> Split:
    """Return the split of the experiment's fold.

    Args:
        experiment: Experiment with the settings.
        dataset: Its dataset.

    Returns:
        Ids of the training and validation cases; with ``data.fold=all`` every labelled case is a training case.

    Raises:
        ConfigError: The splits file has fewer folds.
        DataError: The splits do not fit the dataset.
    """
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
    """Return the split of every fold, from the splits file of the experiment or by subject.

    Args:
        experiment: Experiment with the settings.
        dataset: Its dataset.

    Returns:
        One split per fold.

    Raises:
        DataError: The splits do not fit the dataset.
    """
    data = experiment.data
    if data.splits is None:
        return k_fold(dataset.labelled_cases, data.folds, experiment.seed)
    return read_splits(data.splits, dataset.labelled_cases)


def resolve_preprocessing(
    experiment: ExperimentConfig,
    dataset: Dataset,
    labels: Labels,
    training_cases: Sequence[str],
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Preprocessing:
    """Return the preprocessing with the intensity statistics of the training cases.

    Args:
        experiment: Experiment with the settings.
        dataset: Its dataset.
        labels: Its labels; foreground statistics are those of voxels of any label.
        training_cases: Ids of the cases to measure.
        progress: Called after each case that is read with (done, total, case id).
        cluster: Dask cluster on which the cases are read; None for this machine.

    Returns:
        Preprocessing with one entry per channel, which is stored in the model folder.

    Raises:
        ConfigError: Statistics are given for a channel that does not exist or is not normalised by them, or colours are
            normalised otherwise than the published weights expect.
        DataError: A case cannot be read.
    """
    training = dataset.subset(training_cases)
    require_each_channel(training.cases, dataset.channel_names, dataset.root)
    chosen = experiment.preprocess
    methods = resolve_methods(chosen.normalize, dataset.channel_names)
    given_by_name = dict(chosen.intensities or {})
    if published := _published_weights(experiment, dataset.channel_names):
        from medseg.fine_tuning.published_source import as_published  # loads torch

        methods, given_by_name = as_published(
            published, chosen.normalize, methods, given_by_name, dataset.channel_names
        )
    given = _given_intensities(given_by_name, dataset.channel_names, methods)
    measured = [channel for channel, method in enumerate(methods) if method == "ct" and channel not in given]
    intensities = None
    if measured:
        intensities = training_intensities(
            training,
            labels,
            measured,
            known=experiment.data.fingerprint,
            executor=preparation_executor(experiment, cluster),
            progress=progress,
        )
    return Preprocessing(
        orientation=chosen.orientation,
        spacing=chosen.spacing,
        crop_to_nonzero=chosen.crop_to_nonzero,
        channels=normalizations(methods, intensities, given),
    )


def _published_weights(experiment: ExperimentConfig, channel_names: Sequence[str]) -> Path | None:
    """Return the file of a whole published model that the training of colour images starts from; None for others."""
    model = experiment.model
    if model.weights is None or not model.has_published_weights or not set(COLOURS) & set(channel_names):
        return None
    from medseg.models.pretrained.zoos.read_published import is_published  # loads torch

    source = model.trained_source
    return source if source is not None and is_published(source) else None


def _given_intensities(
    given: Mapping[str, ChannelIntensities], channel_names: Sequence[str], methods: Sequence[str]
) -> dict[int, ChannelIntensities]:
    """Return the statistics that the experiment gives by index of the channel."""
    found = {}
    for name, statistics in given.items():
        if name not in channel_names:
            raise ConfigError(
                f"preprocess.intensities: found {name!r}, expected one of {', '.join(channel_names)}."
                f"{did_you_mean(name, channel_names)} Correct the name."
            )
        channel = list(channel_names).index(name)
        if methods[channel] != "ct":
            raise ConfigError(
                f"preprocess.intensities.{name}: found statistics with the method {methods[channel]}, expected ct. Set "
                "preprocess.normalize to ct, or remove the statistics."
            )
        found[channel] = statistics
    return found


def preparation_executor(experiment: ExperimentConfig, cluster: str | None = None) -> CaseExecutor:
    """Return where cases are read and prepared: on a cluster, or in as many processes as ``train.workers`` says."""
    workers = experiment.train.workers
    return CaseExecutor(None if workers == "auto" else workers, cluster)
