"""Held-out cases of a run, and their predictions paired with references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg.data.datasets.cases import UNDECIDED, Case, Dataset, ReadingOptions
from medseg.data.datasets.read_case import read_case_label, read_case_objects, read_repaired_labels
from medseg.data.datasets.splits import subjects_of
from medseg.errors import DataError
from medseg.evaluation.instances.pairs import ComponentsOf, InstancePair
from medseg.evaluation.label_maps.pairs import Pair
from medseg.experiment.config import EvaluateSettings
from medseg.experiment.resolve_data import find_dataset, labels_of
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.model_id import model_hash
from medseg.io.companions.instance_files import InstanceFile, instance_map_path
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.model_folder.model_card import add_figures
from medseg.volumes.volume import Volume


def dataset_of_run(run: RunFolder) -> Dataset:
    """Return the dataset of a run.

    Args:
        run: Run folder, finished or not.

    Returns:
        The dataset with all its cases, whether the run trains on them or not.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The dataset cannot be read.
    """
    return find_dataset(run.read_experiment(), run.shared_folder)


def held_out_cases(run: RunFolder, reading: ReadingOptions = UNDECIDED) -> tuple[Case, ...]:
    """Return the cases that a run does not train on; for a cross-validation, those of every fold.

    Args:
        run: Run folder, finished or not.
        reading: What the user decided about files whose headers are wrong; what it leaves open is as in the run.

    Returns:
        The cases of the validation part of the split; for a cross-validation, of all its splits.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The run trains on all cases, or its dataset cannot be read.
    """
    dataset = dataset_of_run(run)
    splits = run.read_splits(dataset.labelled_cases)
    if not any(split.validation for split in splits):
        raise DataError(
            f"{run}: found no held-out cases, because the run trains on all cases (data.fold=all). Predict other images, "
            "or train a fold."
        )
    held_out = dataset.subset(case for split in splits for case in split.validation).cases
    return tuple(replace(case, reading=case.reading.updated(reading)) for case in held_out)


def subjects_of_run(run: RunFolder) -> dict[str, str]:
    """Return the subject of each labelled case of a run's dataset, by which its cases were split and intervals are computed.

    Args:
        run: Run folder, finished or not.

    Returns:
        Subjects by id of the case; see `medseg.data.datasets.splits.subjects_of`.

    Raises:
        ConfigError: The folder is not a run.
        DataError: The dataset cannot be read.
    """
    return subjects_of(dataset_of_run(run).labelled_cases)


def held_out_pairs(
    run: RunFolder, reading: ReadingOptions = UNDECIDED
) -> tuple[list[Pair], Labels, EvaluateSettings]:
    """Return the predictions of a run's held-out cases with their references.

    Args:
        run: Finished run folder whose held-out cases are predicted.
        reading: As for `held_out_cases`.

    Returns:
        Pairs of prediction and reference, the labels, and the settings to compare them with.

    Raises:
        ConfigError: The folder is not a run.
        DataError: Predictions are missing, or come from another model.
    """
    experiment = run.read_experiment()
    labels = labels_of(experiment, dataset_of_run(run))
    cases = held_out_cases(run, reading)
    files = _predictions(run, cases)
    pairs = [
        Pair(
            case.id,
            file,
            case.label or partial(_derived_reference, case, labels),
            case.annotated,
            case.reading,
        )
        for case, file in zip(cases, files, strict=True)
    ]
    return pairs, labels, experiment.evaluate


def held_out_instances(
    run: RunFolder, reading: ReadingOptions = UNDECIDED
) -> tuple[list[InstancePair], Labels]:
    """Return the predicted instances of a run's held-out cases with their references.

    Without predicted instance maps, the connected components of the predicted label maps count as instances; for a case
    without a reference instance map, so do those of its reference label map.

    Args:
        run: Finished run folder whose held-out cases are predicted.
        reading: As for `held_out_cases`.

    Returns:
        Pairs of prediction and reference, and the labels.

    Raises:
        ConfigError: The folder is not a run.
        DataError: Predictions are missing, or only some cases have a predicted instance map.
    """
    labels = labels_of(run.read_experiment(), dataset_of_run(run))
    cases = held_out_cases(run, reading)
    pairs = []
    files = _predictions(run, cases)
    maps = [instance_map_path(file) for file in files]
    found = any(file.is_file() for file in maps)
    if found:
        _require(maps, cases, f"medseg predict {run} --held-out --instances")
    for case, file in zip(cases, maps if found else files, strict=True):
        if case.instances is not None:
            reference = partial(read_case_objects, case, labels)
            components: ComponentsOf = "neither" if found else "predictions"
            pairs.append(InstancePair(case.id, file, reference, components, case.reading))
        elif case.label is not None and not found:
            pairs.append(InstancePair(case.id, file, case.label, "both", case.reading))
        elif case.is_labelled:
            components = "neither" if found else "predictions"
            pairs.append(
                InstancePair(
                    case.id, file, partial(_components_of_label, case, labels), components, case.reading
                )
            )
    return pairs, labels


def add_run_figures(run: RunFolder, summary: Mapping[str, Any]) -> Path | None:
    """Write the figures of an evaluation of held-out cases to the card of the model that predicted them.

    Args:
        run: Run folder.
        summary: Contents of the ``summary.json`` of the evaluation.

    Returns:
        The model folder; None if it is not known which model predicted the cases, or if it has no card.
    """
    if run.is_cross_validation:
        folder: Path | None = run.model
        source = "cases of a cross-validation, each predicted by a network that was not trained on it"
    else:
        folder, source = _evaluated_model(run), "held-out cases of the training data"
    return folder if folder is not None and add_figures(folder, summary, source) else None


def _evaluated_model(run: RunFolder) -> Path | None:
    """Return the model folder of a single run that predicted all of its held-out cases; None if it is not known."""
    records = CaseRecords(run.predictions)
    found = {record and record.model for record in (records.get(case.id) for case in held_out_cases(run))}
    known = {model_hash(folder): folder for folder in (run.best, run.model) if folder.is_dir()}
    return known.get(found.pop() or "") if len(found) == 1 else None


def _predictions(run: RunFolder, cases: Sequence[Case]) -> list[Path]:
    files = [run.predictions / f"{case.id}.nii.gz" for case in cases]
    predict = f"medseg predict {run} --held-out"
    if run.checkpoints.is_dir() and not run.is_finished and not any(map(Path.is_file, files)):
        raise DataError(
            f"{run}: found a run that is not finished, expected predictions. Continue with: medseg train --resume {run}."
        )
    _require(files, cases, predict)
    _require_present_model(run, cases, predict)
    return files


def _require_present_model(run: RunFolder, cases: Sequence[Case], predict: str) -> None:
    """Refuse predictions of a model that the run had before it was extended."""
    if not run.is_finished or run.is_cross_validation:
        return
    present = {model_hash(folder) for folder in (run.model, run.best)} - {""}
    records = {case.id: CaseRecords(run.predictions).get(case.id) for case in cases}
    wrote = {name: record and record.model for name, record in records.items()}
    former = [name for name, model in wrote.items() if (model or "") not in {"", *present}]
    if former:
        raise DataError(
            f"{run.predictions}: {len(former)} of {len(cases)} predictions come from another model than {run.model}, "
            f"such as {former[0]}. Predict again: {predict}."
        )


def _require(files: Sequence[Path], cases: Sequence[Case], command: str) -> None:
    missing = [case.id for case, file in zip(cases, files, strict=True) if not file.is_file()]
    if missing:
        raise DataError(
            f"{files[0].parent}: {len(missing)} of {len(files)} predictions are missing: "
            f"{', '.join(missing[:10])}. Run: {command}."
        )


def _components_of_label(case: Case, labels: Labels) -> InstanceFile:
    """Return the connected components of a case's label map as instances."""
    if case.label is None:
        label = _derived_reference(case, labels)
    else:
        label = read_repaired_labels(case.label, case.reading, like=case.images[0])
    parts = Instances.from_components(label.data[0])
    values = {number: int(value) for number, value in enumerate(parts.classes, start=1)}
    return InstanceFile(label.with_data(parts.to_map()[None]), values)


def _derived_reference(case: Case, labels: Labels) -> Volume:
    """Return the label map, with label values, of a case that has instances or probabilities only."""
    classes = read_case_label(case, labels)
    return classes.with_data(labels.to_values(classes.data))
