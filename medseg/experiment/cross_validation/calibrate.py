"""Calibration from out-of-fold logits: read the samples of all held-out cases and fit temperatures."""

from __future__ import annotations

from medseg.evaluation.calibration.cross_fitted import CrossFitted, cross_fitted
from medseg.experiment.cross_validation.out_of_fold import held_out_by_fold
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.cohort.written_files import logit_sample_path
from medseg.inference.uncertainty.logit_sample import VoxelSample
from medseg.labels.label_table import Labels


def fold_calibration(run: RunFolder, labels: Labels) -> CrossFitted | str:
    """Fit temperatures on the logits that out-of-fold prediction sampled.

    Args:
        run: Run folder of a cross-validation with all its predictions.
        labels: Labels that the networks learned, and their regions if they predict these.

    Returns:
        The temperatures, with the calibration before and after; or a sentence for the user that says why there are none.

    Raises:
        DataError: A sample is damaged.
    """
    outputs = OutputFiles(run.predictions)
    files = {
        one.fold: [logit_sample_path(outputs.label_map_path(case.id)) for case in one.cases]
        for one in held_out_by_fold(run)
    }
    if not all(file.is_file() for of_fold in files.values() for file in of_fold):
        return "calibration: no temperatures are fitted, because predictions have no samples of logits, as those of instances"
    samples = {fold: [VoxelSample.read(file) for file in of_fold] for fold, of_fold in files.items()}
    found = cross_fitted(samples, labels)
    if found is None:
        return "calibration: no temperatures are fitted, because fewer than two folds have fully annotated cases with foreground"
    return found
