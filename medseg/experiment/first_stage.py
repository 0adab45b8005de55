"""The first stage of a cascade: its label maps of the dataset's cases, and its model folder.

A second stage must learn from label maps as good as those it gets on new images. So every label map must come from a
network that was not trained on its case: out-of-fold predictions of a cross-validation (nnU-Net, Isensee et al.,
Nature Methods 2021).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.settings import CascadeSettings
from medseg.errors import ConfigError, DataError
from medseg.experiment.run_folder import RunFolder
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.runtime.formatting import listed, pluralise
from medseg.storage.manifest import check_manifest

_MOST_LISTED = 10


def with_first_stage(dataset: Dataset, cascade: CascadeSettings | None) -> Dataset:
    """Add the path of the first stage's label map to each labelled case.

    Args:
        dataset: Dataset of the second stage.
        cascade: Settings with the run of the first stage; None if there is no cascade.

    Returns:
        A dataset with these paths, whose files need not exist; `dataset` itself if `cascade` is None.
    """
    if cascade is None:
        return dataset
    labelled = {case.id for case in dataset.labelled_cases}
    folder = first_stage_run(cascade).predictions
    cases = (
        replace(case, first_stage=folder / f"{case.id}.nii.gz") if case.id in labelled else case
        for case in dataset.cases
    )
    return replace(dataset, cases=tuple(cases))


def first_stage_run(cascade: CascadeSettings) -> RunFolder:
    """Return the run folder of the first stage."""
    return RunFolder(Path(cascade.first_stage))


def check_first_stage(cascade: CascadeSettings, dataset: Dataset, cases: Sequence[Case]) -> Labels:
    """Check that the first stage is finished, held out every case, and has predicted all of them.

    Args:
        cascade: Settings with the run of the first stage.
        dataset: Dataset of the second stage.
        cases: Cases that the second stage trains on and holds out, as `with_first_stage` returns them.

    Returns:
        The labels of the first stage.

    Raises:
        ConfigError: The run is not finished, or was trained on a case that none of its folds held out.
        ModelError: Its model folder is damaged.
        DataError: Label maps are missing.
    """
    run = first_stage_run(cascade)
    if not (run.model / "config.yaml").is_file() or not run.splits.is_file():
        raise ConfigError(
            f"cascade.first_stage: {run}: found no finished run (model, splits.json), expected that of the first stage. "
            f"Train it with: medseg train CONFIG --run {shlex.quote(str(run))} --all-folds."
        )
    check_manifest(run.model)
    names = SavedModel.load(run.model / "config.yaml").channel_names
    if names != dataset.channel_names:
        raise ConfigError(
            f"cascade.first_stage: {run.model}: channels: found {', '.join(names)}, expected "
            f"{', '.join(dataset.channel_names)}. Give a first stage of the same images."
        )
    _check_held_out(run, cases)
    require_label_maps(run, cases)
    return Labels.from_tsv(run.model / "labels.tsv")


def _check_held_out(run: RunFolder, cases: Sequence[Case]) -> None:
    held_out = {case_id for split in run.read_splits() for case_id in split.validation}
    others = [case.id for case in cases if case.id not in held_out]
    if others:
        raise ConfigError(
            f"cascade.first_stage: {run}: {len(others)} of {pluralise(len(cases), 'case')} were not held out by any fold: "
            f"{listed(others, _MOST_LISTED)}; label maps of training cases are better than those of new images. Cross-validate the "
            f"first stage in a new folder: medseg train {shlex.quote(str(run.config))} --run FOLDER --all-folds, and give "
            "cascade.first_stage=FOLDER."
        )


def require_label_maps(run: RunFolder, cases: Sequence[Case]) -> None:
    """Check that the label map of the first stage exists for every case.

    Args:
        run: Run folder of the first stage.
        cases: Cases, as `with_first_stage` returns them.

    Raises:
        DataError: Label maps are missing; the message has the command that predicts them.
    """
    missing = [case.id for case in cases if case.first_stage is None or not case.first_stage.is_file()]
    if missing:
        raise DataError(
            f"{run.predictions}: {len(missing)} of {len(cases)} label maps of the first stage are missing: "
            f"{listed(missing, _MOST_LISTED)}. Predict them with: medseg predict {shlex.quote(str(run))} --held-out."
        )


def first_stage_labels(run: RunFolder) -> Labels:
    """Return the labels of the first stage from the copy in the run of the second stage.

    Args:
        run: Run folder of the second stage.

    Returns:
        Labels of the first stage.

    Raises:
        ModelError: The copy is missing or damaged.
    """
    check_manifest(run.first_stage)
    return Labels.from_tsv(run.first_stage / "labels.tsv")
