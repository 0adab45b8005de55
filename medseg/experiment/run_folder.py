"""Run folders: opening a new one, and reading an old one back.

``RUN/  config.yaml  environment.json  splits.json  labels.tsv  preprocessing.yaml  metrics.jsonl  last/  best/  model/
predictions/  evaluation/``
"""

from __future__ import annotations

import fnmatch
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from medseg.config import differences
from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.datasets.read_case import read_case_label, read_case_objects
from medseg.data.datasets.splits import Split, read_splits, write_splits
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import RegionSettings
from medseg.errors import ConfigError, DataError, did_you_mean
from medseg.evaluation.instances.pairs import InstancePair
from medseg.evaluation.label_maps.pairs import Pair
from medseg.experiment.config import EvaluateSettings, ExperimentConfig
from medseg.experiment.first_stage import copy_first_stage, with_first_stage
from medseg.experiment.fold_folders import cross_validation_of, shared_folder
from medseg.inference.provenance import Provenance, model_hash
from medseg.io.files import read_labels
from medseg.io.instance_files import InstanceFile, instance_map_path
from medseg.labels.instances import Instances
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import FIRST_STAGE
from medseg.storage.atomic import write_text
from medseg.storage.lock import NAME as LOCK
from medseg.volumes.volume import Volume

LABELS, PREPROCESSING = "labels.tsv", "preprocessing.yaml"
_FIRST = "environment.json"
_BEFORE_CONFIG = {LOCK, _FIRST, FIRST_STAGE, "splits.json", LABELS, PREPROCESSING}


def check_run(experiment: ExperimentConfig, run: Path, *, resume: bool) -> None:
    """Check that a run can be begun in this folder, or that it holds this very experiment; writes nothing.

    Raises:
        ConfigError: the folder holds another run, or none to resume.
    """
    config = run / "config.yaml"
    if resume:
        if not config.is_file():
            raise ConfigError(f"{run}: found no run to resume. Start it without resume.")
        stored = ExperimentConfig.load(config)
        if stored != experiment:
            raise ConfigError(
                f"{config}: differs from the given experiment, expected the same: {differences(experiment, stored)}. Resume "
                "with the run's own config."
            )
        return
    if run.exists() and not (run.is_dir() and _is_unopened(run)):
        raise ConfigError(
            f"{run}: found something there already, expected a new or empty folder. Resume the run, or choose another folder."
        )


def _is_unopened(run: Path) -> bool:
    """Whether a folder holds nothing but what `open_run` writes before the config."""
    present = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    return present <= {LOCK} or (_FIRST in present and present <= _BEFORE_CONFIG)


def open_run(
    experiment: ExperimentConfig, run: Path, split: Split, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Make the run folder; ``config.yaml`` is written last, so that a folder with it can be resumed.

    ``environment.json`` is written first: a folder with it and without a config was left by one that was stopped.
    What was measured, and the names of labels, are kept, because the files of the dataset may change meanwhile.
    """
    write_text(run / _FIRST, json.dumps(_environment(), indent=1, sort_keys=True) + "\n")
    shutil.rmtree(run / FIRST_STAGE, ignore_errors=True)  # of one that was stopped
    if experiment.cascade is not None:
        copy_first_stage(experiment.cascade, run)
    write_splits([split], run / "splits.json")
    write_text(run / LABELS, labels.to_tsv())
    if cross_validation_of(run) is None:  # whose folds share theirs
        write_text(run / PREPROCESSING, preprocessing.to_yaml())
    save_config(experiment, run)


def saved_preprocessing(run: Path) -> Preprocessing | None:
    """The preprocessing that a run began with; None of one of an older medseg."""
    return Preprocessing.load(run / PREPROCESSING) if (run / PREPROCESSING).is_file() else None


def saved_labels(run: Path) -> Labels | None:
    """The labels that a run began with; None of one of an older medseg."""
    return Labels.from_tsv(run / LABELS) if (run / LABELS).is_file() else None


def save_config(experiment: ExperimentConfig, run: Path) -> None:
    """Write the ``config.yaml`` of a run."""
    write_text(run / "config.yaml", experiment.to_yaml())


def find_dataset(experiment: ExperimentConfig, run: Path) -> Dataset:
    """Read the dataset, or make the phantoms beside the run, where they are found again.

    Behind an earlier stage, labelled cases name the label map that it predicted for them.
    """
    found = _with_annotated(_dataset(experiment, run), experiment.data.partially_annotated)
    return with_first_stage(found, experiment.cascade)


def _with_annotated(dataset: Dataset, partial: Mapping[str, tuple[str, ...]]) -> Dataset:
    """The dataset with the labels that were drawn in some of its cases, as the config tells."""
    cases = {case.id: case for case in dataset.cases}
    for pattern, names in partial.items():
        meant = fnmatch.filter(cases, pattern)
        if not meant:
            raise ConfigError(
                f"data.partially_annotated: no case matches {pattern!r}.{did_you_mean(pattern, cases)} Give a case id, or a pattern such as "
                "liver_*."
            )
        cases |= {case_id: replace(cases[case_id], annotated=names) for case_id in meant}
    return replace(dataset, cases=tuple(cases.values())) if partial else dataset


def _dataset(experiment: ExperimentConfig, run: Path) -> Dataset:
    data = experiment.data
    if data.path is not None:
        return read_dataset(data.path, layout=data.layout)
    if data.phantom is not None:
        folder = (
            shared_folder(run) / f"phantom_{data.phantom.modality}_{data.phantom.cases}_{data.phantom.seed}"
        )
        if (folder / "dataset.json").is_file():  # written last, so the files are there
            found = read_dataset(folder)
            if (found.name, len(found.cases)) == (f"phantom_{data.phantom.modality}", data.phantom.cases):
                return found
        return write_phantoms(
            folder, cases=data.phantom.cases, modality=data.phantom.modality, seed=data.phantom.seed
        )
    raise ConfigError("data.path: missing. Give the dataset with --data PATH or data.path=PATH.")


def labels_of(experiment: ExperimentConfig, dataset: Dataset) -> Labels:
    """The dataset's labels, regions and ignore value, unless the experiment names its own.

    Raises:
        DataError: nobody names labels, or regions or the ignore value do not fit them.
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
    written = {
        name: region.output_value
        for name, region in data.regions.items()
        if isinstance(region, RegionSettings)
    }
    return labels.with_regions(values, written)


def label_sets_of(labels: Labels, dataset: Dataset) -> LabelSets:
    """What the values of prepared label maps stand for, of all labelled cases of the dataset.

    Raises:
        DataError: an unknown name among the drawn labels of a case.
    """
    return LabelSets.from_annotations(labels, {case.id: case.annotated for case in dataset.labelled_cases})


def _environment() -> dict[str, object]:
    packages = ("medseg", "torch", "monai", "numpy", "scipy", "nibabel", "lightning-fabric")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in packages},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def held_out_cases(run: Path) -> tuple[Case, ...]:
    """Cases that a finished or unfinished run did not train on; of a cross-validation, those of every fold.

    Raises:
        DataError: it trained on all cases.
    """
    experiment = load_run(run)
    dataset = find_dataset(experiment, run)
    splits = read_splits(run / "splits.json", dataset.labelled_cases)
    if not any(split.validation for split in splits):
        raise DataError(
            f"{run}: trained on all cases (data.fold=all), so that none is held out. Predict other images, or train a fold."
        )
    return dataset.subset(case for split in splits for case in split.validation).cases


def held_out_pairs(run: Path) -> tuple[list[Pair], Labels, EvaluateSettings]:
    """Predictions of a run's held-out cases with their references, labels, and how to compare them."""
    experiment = load_run(run)
    labels = labels_of(experiment, find_dataset(experiment, run))
    cases = held_out_cases(run)
    files = _predictions(run, cases)
    pairs = [
        Pair(case.id, file, case.label or partial(_reference_of_instances, case, labels), case.annotated)
        for case, file in zip(cases, files, strict=True)
    ]
    return pairs, labels, experiment.evaluate


def held_out_instances(run: Path) -> tuple[list[InstancePair], Labels]:
    """Predicted instances of a run's held-out cases with their reference instances, and labels.

    Where no instance maps were predicted, the connected parts of the predicted label maps count as instances; and
    those of the reference where a case has no instance map.

    Raises:
        DataError: predictions are missing, or only some cases have an instance map.
    """
    experiment = load_run(run)
    labels = labels_of(experiment, find_dataset(experiment, run))
    cases = held_out_cases(run)
    pairs = []
    files = _predictions(run, cases)
    maps = [instance_map_path(file) for file in files]
    found = any(file.is_file() for file in maps)
    if found:
        _require(maps, cases, f"medseg predict {run} --held-out --instances")
    for case, file in zip(cases, maps if found else files, strict=True):
        if case.instances is not None:
            reference = partial(read_case_objects, case, labels)
            pairs.append(InstancePair(case.id, file, reference, "neither" if found else "predictions"))
        elif case.label is not None and found:
            pairs.append(InstancePair(case.id, file, partial(_parts_of_label, case)))
        elif case.label is not None:
            pairs.append(InstancePair(case.id, file, case.label, "both"))
    return pairs, labels


def _predictions(run: Path, cases: Sequence[Case]) -> list[Path]:
    files = [run / "predictions" / f"{case.id}.nii.gz" for case in cases]
    predict = f"medseg predict {run} --held-out"
    if (run / "last").is_dir() and not (run / "model").is_dir() and not any(map(Path.is_file, files)):
        raise DataError(
            f"{run}: found a run that is not finished, expected predictions. Go on with: medseg train --resume {run}."
        )
    _require(files, cases, predict)
    _require_present_model(run, cases, predict)
    return files


def _require_present_model(run: Path, cases: Sequence[Case], predict: str) -> None:
    """Refuse predictions that a model made which the run had before it was trained further."""
    present = {model_hash(run / folder) for folder in ("model", "best")} - {""}
    provenance = Provenance(run / "predictions")
    former = [case.id for case in cases if (provenance.model_of(case.id) or "") not in {"", *present}]
    if former and (run / "model").is_dir() and not (run / "fold_0").is_dir():
        raise DataError(
            f"{run / 'predictions'}: {len(former)} of {len(cases)} predictions were made by another model than {run / 'model'}, "
            f"such as {former[0]}. Predict again: {predict}."
        )


def _require(files: Sequence[Path], cases: Sequence[Case], command: str) -> None:
    missing = [case.id for case, file in zip(cases, files, strict=True) if not file.is_file()]
    if missing:
        raise DataError(
            f"{files[0].parent}: {len(missing)} of {len(files)} predictions are missing: "
            f"{', '.join(missing[:10])}. Run: {command}."
        )


def _parts_of_label(case: Case) -> InstanceFile:
    """The connected parts of a case's label map as instances."""
    assert case.label is not None
    label = read_labels(case.label)
    parts = Instances.from_components(label.data[0])
    values = {number: int(value) for number, value in enumerate(parts.classes, start=1)}
    return InstanceFile(label.with_data(parts.to_map()[None]), values)


def _reference_of_instances(case: Case, labels: Labels) -> Volume:
    """The label map that a case's instances stand for, with the labels' values."""
    classes = read_case_label(case, labels)
    return classes.with_data(labels.to_values(classes.data))


def load_run(run: Path) -> ExperimentConfig:
    """The experiment of a run folder."""
    if not (run / "config.yaml").is_file() or not (run / "splits.json").is_file():
        raise ConfigError(
            f"{run}: found no run (config.yaml, splits.json). Give a folder written by medseg train."
        )
    return ExperimentConfig.load(run / "config.yaml")
