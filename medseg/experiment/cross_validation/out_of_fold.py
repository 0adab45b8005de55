"""Out-of-fold predictions: each case is predicted by the model that was not trained on it.

Predictions of an earlier model are repeated; see `medseg.inference.cohort.case_records`. The records hold the evidence of each
case, see `medseg.inference.uncertainty.case_evidence`, and a sample of its logits is kept, from which temperatures are
fitted; instances have neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.errors import ConfigError
from medseg.experiment.held_out import dataset_of_run
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.cohort_tables import complete_tables
from medseg.inference.cohort.loaded_models import LoadedModels
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.output_files import OutputFiles, PredictionState
from medseg.inference.cohort.predict_folder import Cluster, FolderPrediction
from medseg.runtime.progress import Progress
from medseg.storage.manifest import NAME


@dataclass(frozen=True)
class HeldOut:
    """The cases that one fold held out.

    Attributes:
        fold: Index of the fold.
        model: Model folder of the fold.
        model_id: Identity of that model, by which its predictions are recognised.
        cases: The cases, sorted by id.
    """

    fold: int
    model: Path
    model_id: ModelId
    cases: tuple[Case, ...]


def held_out_by_fold(run: RunFolder) -> list[HeldOut]:
    """Return the held-out cases of every fold.

    Args:
        run: Run folder of a cross-validation.

    Returns:
        One entry per fold.

    Raises:
        ConfigError: Folds are not finished, so their models are missing.
    """
    dataset = dataset_of_run(run)
    splits = run.read_splits(dataset.labelled_cases)
    models = [run.fold(fold).model for fold in range(len(splits))]
    missing = [str(fold) for fold, model in enumerate(models) if not (model / NAME).is_file()]
    if missing:
        raise ConfigError(
            f"{run}: folds not finished: found {', '.join(missing)} of {len(splits)}, expected none. Continue with: medseg train "
            f"--resume {run}."
        )
    return [
        HeldOut(fold, model, ModelId.from_folders([model]), dataset.subset(split.validation).cases)
        for fold, (model, split) in enumerate(zip(models, splits, strict=True))
    ]


def _outputs(run: RunFolder, instances: bool) -> OutputFiles:
    """Return what is written for each held-out case."""
    label_maps = not instances
    return OutputFiles(run.predictions, instances=instances, logit_sample=label_maps, evidence=label_maps)


def pending_predictions(run: RunFolder, *, instances: bool = False) -> list[HeldOut]:
    """Return, for every fold, the held-out cases that its current model has not predicted yet.

    Args:
        run: Run folder of a cross-validation.
        instances: Whether instance maps are required, too.

    Returns:
        One entry per fold, possibly without cases.

    Raises:
        ConfigError: Folds are not finished, so their models are missing.
    """
    outputs = _outputs(run, instances)
    records = CaseRecords(outputs.folder)

    def is_current(held_out: HeldOut, case: Case) -> bool:
        label_map = outputs.label_map_path(case.id)
        return outputs.state(case, label_map, records, held_out.model_id) is PredictionState.CURRENT

    return [
        replace(one, cases=tuple(case for case in one.cases if not is_current(one, case)))
        for one in held_out_by_fold(run)
    ]


def predict_out_of_fold(
    run: RunFolder,
    todo: Sequence[HeldOut],
    *,
    instances: bool = False,
    source_names: bool = True,
    device: str | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Iterator[Outcome]:
    """Predict held-out cases with the models of their folds, into ``RUN/predictions``.

    Args:
        run: Run folder of a cross-validation.
        todo: Cases to predict, as returned by `pending_predictions`.
        instances: Whether to write instance maps, too.
        source_names: Whether to record the names of image files.
        device: As for `medseg.load`.
        max_memory: As for `medseg.load`.
        max_device_memory: As for `medseg.load`.
        progress: Called with (done, total, "window") for each image; not called on a cluster.
        cluster: Dask cluster to predict on; None for this process.

    Yields:
        One outcome per case, after its file and its record have been written.
    """
    outputs = _outputs(run, instances)
    for one in todo:
        if not one.cases:
            continue
        models = LoadedModels.load(
            one.model,
            device=device if cluster is None else "cpu",  # workers have devices of their own
            max_memory=max_memory,
            max_device_memory=max_device_memory,
        )
        cases = [(case.id, case) for case in one.cases]
        where = None if cluster is None else Cluster(cluster, device)
        prediction = FolderPrediction(
            models, cases, outputs, "update", source_names=source_names, cluster=where
        )
        yield from prediction.run(progress)
    if not any(one.cases for one in todo):
        complete_tables(run.predictions)
