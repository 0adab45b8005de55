"""The earlier stage of a cascade: its label maps of the dataset's cases, and its model folder.

A stage must learn from label maps as good as those it will see on new images. So every label map must come of a network
that did not train on its case: out-of-fold predictions of a cross-validated run (nnU-Net, Isensee et al., Nature Methods
2021).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.splits import read_splits
from medseg.data.settings import CascadeSettings
from medseg.errors import ConfigError, DataError
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import FIRST_STAGE
from medseg.model_folder.settings import SavedModel
from medseg.runtime.formatting import pluralise
from medseg.storage.atomic import copy_folder, replacing_folder
from medseg.storage.manifest import check_manifest

_MOST_LISTED = 10


def with_first_stage(dataset: Dataset, first_stage: CascadeSettings | None) -> Dataset:
    """The dataset whose labelled cases name the label map of the earlier stage, whether it is there or not."""
    if first_stage is None:
        return dataset
    labelled = {case.id for case in dataset.labelled_cases}
    folder = Path(first_stage.first_stage) / "predictions"
    cases = (
        replace(case, first_stage=folder / f"{case.id}.nii.gz") if case.id in labelled else case
        for case in dataset.cases
    )
    return replace(dataset, cases=tuple(cases))


def check_first_stage(first_stage: CascadeSettings, dataset: Dataset, cases: Sequence[Case]) -> Labels:
    """Check that the earlier stage is finished and held out every case, and that its label maps are there.

    Args:
        first_stage: where it is.
        dataset: of this stage. cases: those that it trains on and holds out, from `with_previous`.

    Returns:
        The labels of the earlier stage.

    Raises:
        ConfigError: it is not finished, or was trained on a case without ever holding it out. ModelError: its model
            folder is damaged. DataError: label maps are missing.
    """
    run = Path(first_stage.first_stage)
    model = run / "model"
    if not (model / "config.yaml").is_file() or not (run / "splits.json").is_file():
        raise ConfigError(
            f"cascade.first_stage: {run}: found no finished run (model, splits.json), expected that of the earlier stage. Make it "
            f"with: medseg train CONFIG --run {shlex.quote(str(run))} --all-folds."
        )
    check_manifest(model)
    names = SavedModel.load(model / "config.yaml").channel_names
    if names != dataset.channel_names:
        raise ConfigError(
            f"cascade.first_stage: {model}: channels: found {', '.join(names)}, expected {', '.join(dataset.channel_names)}. Give a "
            "stage of the same images."
        )
    _check_held_out(run, cases)
    require_label_maps(run, cases)
    return Labels.from_tsv(model / "labels.tsv")


def _check_held_out(run: Path, cases: Sequence[Case]) -> None:
    held_out = {case_id for split in read_splits(run / "splits.json") for case_id in split.validation}
    others = [case.id for case in cases if case.id not in held_out]
    if others:
        raise ConfigError(
            f"cascade.first_stage: {run}: {len(others)} of {pluralise(len(cases), 'case')} were not held out by any of its folds: "
            f"{_listed(others)}; label maps of cases that it was trained on are better than those of new images. "
            "Cross-validate it in a new folder: medseg train "
            f"{shlex.quote(str(run / 'config.yaml'))} --run FOLDER --all-folds, and give cascade.first_stage=FOLDER."
        )


def require_label_maps(run: Path, cases: Sequence[Case]) -> None:
    """Raise a `DataError` that says how to make the label maps of the earlier stage that are missing."""
    missing = [case.id for case in cases if case.first_stage is None or not case.first_stage.is_file()]
    if missing:
        raise DataError(
            f"{run / 'predictions'}: {len(missing)} of {len(cases)} label maps of the earlier stage are missing: "
            f"{_listed(missing)}. Make them with: medseg predict {shlex.quote(str(run))} --held-out."
        )


def copy_first_stage(first_stage: CascadeSettings, run: Path) -> None:
    """Put the model folder of the earlier stage into the run of a later one, so that what it exports stays the same."""
    with replacing_folder(run / FIRST_STAGE) as temporary:
        copy_folder(Path(first_stage.first_stage) / "model", temporary)


def first_stage_labels(run: Path) -> Labels:
    """The labels of the earlier stage that a run has kept.

    Raises:
        ModelError: it is missing or damaged.
    """
    check_manifest(run / FIRST_STAGE)
    return Labels.from_tsv(run / FIRST_STAGE / "labels.tsv")


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_MOST_LISTED]) + (", ..." if len(ids) > _MOST_LISTED else "")
