"""The joint results of the folds of a cross-validation: predictions, table, post-processing and ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.cluster.case_map import CaseExecutor
from medseg.cluster.dask_cluster import connected
from medseg.data.datasets.cases import UNDECIDED, ReadingOptions
from medseg.data.preprocessing.training_data import TrainingData
from medseg.errors import DiskFullError, MedsegError, ModelError, cases_failed
from medseg.evaluation.calibration.cross_fitted import CrossFitted
from medseg.evaluation.cross_validation.select_post_processing import (
    PostProcessing,
    candidate_dice,
    select_post_processing,
)
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.instances.pairs import evaluate_instance_cases
from medseg.evaluation.instances.table import InstanceTable
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.pairs import Pair
from medseg.evaluation.label_maps.table import Table
from medseg.experiment.cross_validation.calibrate import fold_calibration
from medseg.experiment.cross_validation.out_of_fold import pending_predictions, predict_out_of_fold
from medseg.experiment.cross_validation.quality_cases import fitted_quality
from medseg.experiment.held_out import (
    add_run_figures,
    held_out_cases,
    held_out_instances,
    held_out_pairs,
    subjects_of_run,
)
from medseg.experiment.run_folder import RunFolder
from medseg.inference.reference_output import write_reference
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import first_stage_folder, load_model, write_model_folder
from medseg.model_folder.model_card import keep_edits
from medseg.model_folder.settings import PredictSettings, SavedModel
from medseg.report.report_page import remove_outdated_page

if TYPE_CHECKING:
    from medseg.runtime.progress import Progress


def aggregate(run: RunFolder, *, progress: Progress | None = None, cluster: str | None = None) -> FoldTable:
    """Predict and measure the held-out cases of every fold, select post-processing, and write the ensemble.

    Existing predictions of the current models are kept.

    Args:
        run: Run folder of a cross-validation.
        progress: Called with (done, total, text), where the text names the step and the case.
        cluster: Dask cluster on which cases are predicted and measured, see `medseg.cluster.dask_cluster.connected`; None for
            this process.

    Returns:
        The metrics of every case and their means per fold, which are also written to ``RUN/evaluation``; the page of an earlier
        evaluation is removed there.

    Raises:
        ConfigError: Folds are not finished, or another process aggregates.
        DataError: A case cannot be predicted or measured.
        ResourceError: The disk is full, or memory did not suffice for the cases that failed.
    """
    objects = predicts_instances(run)
    todo = pending_predictions(run, instances=objects)
    with run.lock(), nullcontext() if cluster is None else connected(cluster):
        predictions = predict_out_of_fold(run, todo, instances=objects, cluster=cluster)
        failed: list[MedsegError] = []
        total = sum(len(one.cases) for one in todo)
        for number, outcome in enumerate(predictions, start=1):
            if progress is not None:
                progress(number, total, f"predicting {outcome.case.id}")
            if isinstance(outcome.error, DiskFullError):
                raise outcome.error  # the other cases could not be written either
            if outcome.error is not None:
                failed.append(outcome.error)
        if failed:
            raise cases_failed(run.predictions, failed, total, "Fix them, and run the same command again.")
        table = fold_table(run, progress=progress, cluster=cluster)
        if objects:
            found = instance_table(run)
            found.write_tsv(run.evaluation / "instances" / "cases.tsv")
            found.write_summary(run.evaluation / "instances" / "summary.json")
            remove_outdated_page(run.evaluation / "instances" / "report.html", "Evaluation")
            table = replace(table, instances=found)
        table.write_tsv(run.evaluation / "cases.tsv")
        table.write_summary(run.evaluation / "summary.json")
        remove_outdated_page(run.evaluation / "report.html", "Evaluation")
        write_ensemble(run, table)
        add_run_figures(run, table.summary())
    return table


def predicts_instances(run: RunFolder) -> bool:
    """Return whether the cases have instance maps and the model predicts instances."""
    if all(case.instances is None for case in held_out_cases(run)):
        return False
    model, _, labels = load_model(run.fold(0).model)
    return not labels.regions and callable(getattr(model, "instances", None))


def instance_table(run: RunFolder) -> InstanceTable:
    """Measure the instances of all held-out cases, each predicted by the fold that held it out.

    Args:
        run: Run folder of a cross-validation with all its predictions.

    Returns:
        One row per case and class, with the counts of matched and unmatched instances.

    Raises:
        DataError: Predictions are missing, or cannot be measured.
    """
    pairs, labels = held_out_instances(run)
    rows = tuple(row for rows in evaluate_instance_cases(pairs, labels) for row in rows)
    return InstanceTable(rows, subjects=subjects_of_run(run))


def fold_table(
    run: RunFolder,
    *,
    options: MetricOptions | None = None,
    reading: ReadingOptions = UNDECIDED,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> FoldTable:
    """Measure the out-of-fold predictions, select post-processing and fit temperatures; a process has one case in memory.

    Args:
        run: Run folder of a cross-validation with all its predictions.
        options: Metrics to compute, and the conventions for them; None for those of the experiment.
        reading: What the user decided about files whose headers are wrong; what it leaves open is as in the run.
        progress: Called with (done, total, text), where the text is such as "measuring CASE" or "fitting temperatures".
        cluster: Dask cluster on which cases are measured; its workers need the files under the same paths. None for this
            process.

    Returns:
        The metrics of every case and label, with fold and subject of each case. Its `post_processing` is None if
        `no_post_processing_reason` names a reason, and its `calibration` may be such a reason.

    Raises:
        DataError: Predictions are missing, or cannot be measured.
    """
    pairs, labels, settings = held_out_pairs(run if cluster is None else run.absolute(), reading)
    options = settings.options if options is None else options
    learns = no_post_processing_reason(run) is None
    measure = partial(_measured, labels=labels, options=options, learns=learns)
    names = [pair.case for pair in pairs]
    rows: list[LabelMetrics] = []
    tried = []
    outcomes = CaseExecutor(cluster=cluster).map(measure, pairs, names, [], progress=_measuring(progress))
    for outcome in outcomes:
        if isinstance(outcome, MedsegError):
            raise outcome
        rows += outcome[0]
        tried += outcome[1]
    if progress is not None:
        progress(len(pairs), len(pairs), "fitting temperatures")
    splits = run.read_splits()
    return FoldTable(
        Table(tuple(rows), options, subjects_of_run(run)),
        folds={case: fold for fold, split in enumerate(splits) for case in split.validation},
        post_processing=select_post_processing(np.stack(tried), [one.name for one in labels.evaluated])
        if learns
        else None,
        calibration=fold_calibration(run, labels),
    )


def _measuring(progress: Progress | None) -> Progress | None:
    """Return a callback that puts "measuring" in front of the name of a case."""
    return None if progress is None else lambda done, total, case: progress(done, total, f"measuring {case}")


def _measured(
    pair: Pair, labels: Labels, options: MetricOptions, learns: bool
) -> tuple[list[LabelMetrics], list[NDArray[np.float64]]]:
    """Return the rows of one case and, if post-processing is selected, the Dice of its candidates; volumes are read once."""
    prediction, reference = pair.volumes()
    loaded = Pair(pair.case, prediction, reference, pair.annotated)
    rows = next(evaluate_cases([loaded], labels, options))
    if not learns:
        return rows, []
    return rows, [candidate_dice(prediction, reference, labels, where=pair.case, annotated=pair.annotated)]


def no_post_processing_reason(run: RunFolder) -> str | None:
    """Return why this cross-validation does not select post-processing; None if it does.

    Args:
        run: Run folder of a cross-validation.

    Returns:
        A sentence for the user, or None.
    """
    settings = run.read_experiment().predict
    if settings.keep_largest_foreground or settings.keep_largest:
        return "post-processing: none is selected, because the config sets it"
    if any(case.instances is not None for case in held_out_cases(run)):
        return (
            "post-processing: none is selected, because a label has many instances; evaluate them with: medseg "
            f"evaluate {run} --instances"
        )
    return None


def write_ensemble(run: RunFolder, table: FoldTable) -> Path:
    """Write ``RUN/model``: an ensemble of all folds, with the selected post-processing, temperatures and a quality model.

    Weights are copied fold by fold, so that only those of one fold are in memory.

    Args:
        run: Run folder of a cross-validation.
        table: Results of the cross-validation.

    Returns:
        The model folder.

    Raises:
        ModelError: The models of the folds differ in more than their weights.
    """
    folders = [run.fold(fold).model for fold in range(len(run.read_splits()))]
    first, saved, labels = load_model(folders[0])
    together = saved.replace(
        members=len(folders),
        predict=_predict_settings(saved.predict, table.post_processing).to_plain(),
        trained_on=_card_lines(saved, table, len(folders)),
        training_data=_merged_training_data(folders),
        calibration=_calibration(table.calibration),
    )
    parameters = len(folders) * sum(p.numel() for p in first.parameters())
    del first
    stage = first_stage_folder(folders[0], saved)
    weights = _weights(folders, saved, labels)
    quality = fitted_quality(run, table)

    def finish(folder: Path) -> None:
        keep_edits(run.model, folder)
        write_reference(folder)
        if quality is not None:
            quality.write(folder)

    write_model_folder(run.model, weights, together, labels, parameters, stage, finish)
    return run.model


def _weights(folders: list[Path], like: SavedModel, labels: Labels) -> Iterator[Mapping[str, Tensor]]:
    for folder in folders:
        model, saved, own = load_model(folder)
        if _what_counts(saved) != _what_counts(like) or own != labels:
            raise ModelError(
                f"{folder}: differs from {folders[0]} in more than its weights, expected folds of one experiment. Train all folds "
                "in one folder."
            )
        yield model.state_dict()


def _what_counts(saved: SavedModel) -> dict[str, Any]:
    own = ("medseg", "trained_on", "training_data")
    return {key: value for key, value in saved.to_plain().items() if key not in own}


def _merged_training_data(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Return the ranges over the training images of all folds; None if a fold has no record."""
    records = [SavedModel.load(folder / "config.yaml").training_data for folder in folders]
    known = [record for record in records if record is not None]
    return TrainingData.union(known).to_plain() if len(known) == len(folders) else None


def _predict_settings(settings: PredictSettings, found: PostProcessing | None) -> PredictSettings:
    if found is None:
        return settings
    return settings.replace(
        keep_largest_foreground=found.keep_largest_foreground, keep_largest=found.keep_largest
    )


def _calibration(found: CrossFitted | str | None) -> dict[str, Any] | None:
    """Return the temperatures for the model folder of the ensemble."""
    if not isinstance(found, CrossFitted):
        return None
    return {"temperatures": list(found.temperatures), "cases": found.cases}


def _card_lines(saved: SavedModel, table: FoldTable, folds: int) -> dict[str, Any]:
    """Return the facts about training for the model card of the ensemble."""
    dice, means = table.table.foreground_mean()["dice"], table.table.mean()
    lines = {
        "dataset": saved.trained_on["dataset"],
        "folds": folds,
        "cases": len(table.table.cases),
        **{key: saved.trained_on[key] for key in ("batch_size", "seed")},
        "cross-validated_Dice": f"{dice:.4f} (95 % interval {table.intervals['']['dice']})",
        "Dice_by_label": ", ".join(f"{name} {found['dice']:.4f}" for name, found in means.items()),
    }
    if table.post_processing is not None and table.post_processing.helps:
        lines["Dice_with_post-processing"] = f"{table.post_processing.foreground_means[1]:.4f}"
    if isinstance(table.calibration, CrossFitted):
        before, after = table.calibration.before["near"].ece, table.calibration.after["near"].ece
        lines["calibration_error_near_foreground"] = f"{before:.2%}, with temperatures {after:.2%}"
    return lines
