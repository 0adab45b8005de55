"""Ensembles of two cross-validated experiments each, as compared by nnU-Net (Isensee et al. 2021)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import Case
from medseg.errors import ConfigError
from medseg.evaluation.cross_validation.compare_runs import Comparison, compare_scores, load_comparable_scores
from medseg.evaluation.cross_validation.select_post_processing import label_dice
from medseg.evaluation.label_maps.pairs import Pair
from medseg.experiment.cross_validation.out_of_fold import held_out_by_fold
from medseg.experiment.held_out import held_out_pairs
from medseg.experiment.run_folder import RunFolder
from medseg.inference.predictor import Predictor, load
from medseg.inference.predictor_ensemble import PredictorEnsemble, write_mean_labels
from medseg.labels.label_table import Labels

if TYPE_CHECKING:
    from medseg.runtime.progress import Progress

_Two = tuple[int, int]
_Dice = NDArray[np.float64]


def compare_with_ensembles(
    runs: Sequence[str | Path],
    *,
    device: str | None = None,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare cross-validations and the ensembles of every two of them, which average probabilities.

    Each run predicts every case again, with the fold that held it out. These predictions are not kept.

    Args:
        runs: Run folders of at least two cross-validations.
        device: As for `medseg.load`.
        scratch: Folder for temporary files, which take two bytes per voxel, label and run for one case; None for the
            folder of the system.
        progress: Called with (done, total, text), where the text is such as "predicting CASE".

    Returns:
        The ranking of the runs and of the ensembles of two runs.

    Raises:
        ConfigError: There are fewer than two runs, folds are not finished, or the runs were evaluated with different rules
            for empty masks, or another one than ``leave_out``.
        DataError: A run has not been aggregated, or its cases or labels differ from those of the first run.
        ModelError: The models take different images, or differ in their labels.
    """
    alone = load_comparable_scores(runs)
    if (rule := alone[0].options["both_empty"]) != "leave_out":
        raise ConfigError(
            f"{runs[0]}: both_empty: found {rule}, expected leave_out, because ensembles are evaluated by this rule. Evaluate "
            "the runs again: medseg evaluate RUN --both-empty leave_out."
        )
    pairs, labels, _ = held_out_pairs(RunFolder(Path(runs[0])))
    by_case = {pair.case: pair for pair in pairs}
    dice: dict[_Two, dict[str, _Dice]] = {two: {} for two in combinations(range(len(runs)), 2)}
    with tempfile.TemporaryDirectory(prefix=".medseg-", dir=scratch) as folder:
        for done, (cases, predictors) in enumerate(_in_turn(runs, device)):
            case = cases[0].id
            if progress is not None:
                progress(done, len(by_case), f"predicting {case}")
            for two, found in _dice_of_pairs(cases, predictors, by_case[case], labels, Path(folder)).items():
                dice[two][case] = found
    names = [one.name for one in labels.evaluated]
    columns = [names.index(name) for name in alone[0].labels]
    for (one, other), of_cases in dice.items():
        table = np.stack([of_cases[case] for case in sorted(of_cases)])[:, columns]
        alone.append(replace(alone[0], runs=(str(runs[one]), str(runs[other])), values=table))
    return compare_scores(alone)


def _in_turn(runs: Sequence[str | Path], device: str | None) -> Iterator[tuple[list[Case], list[Predictor]]]:
    """Yield each case of every run with the predictors not trained on it; one predictor per run is in memory."""
    held_out = [held_out_by_fold(RunFolder(Path(run))) for run in runs]
    places = [{case.id: (one, case) for one in folds for case in one.cases} for folds in held_out]
    order = sorted(places[0], key=lambda case: ([place[case][0].fold for place in places], case))
    models: list[Path] = []
    for case_id in order:
        wanted = [place[case_id][0].model for place in places]
        if wanted != models:
            predictors = [load(model, device=device) for model in wanted]
            PredictorEnsemble(predictors)  # raises if images or labels differ
            models = wanted
        yield [place[case_id][1] for place in places], predictors


def _dice_of_pairs(
    cases: Sequence[Case], predictors: Sequence[Predictor], pair: Pair, labels: Labels, folder: Path
) -> dict[_Two, _Dice]:
    """Return the Dice of each label in one case, by the indices of the two averaged predictors."""
    files = [folder / f"{number}.nii" for number in range(len(predictors))]
    for case, predictor, file in zip(cases, predictors, files, strict=True):
        mean = predictor.run(predictor.prepare(case), probabilities=file)
    _, reference = pair.volumes()
    found = {}
    for two in combinations(range(len(files)), 2):
        write_mean_labels([files[number] for number in two], predictors[0].engine.rule, mean)
        found[two] = label_dice(mean, reference, labels, where=pair.case, annotated=pair.annotated)
    return found
