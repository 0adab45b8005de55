"""The quality model of a cross-validation, fitted to its out-of-fold predictions."""

from __future__ import annotations

import math

from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.quality.fit_quality import ReferenceCase, fit_quality
from medseg.inference.quality.quality_model import QualityModel


def fitted_quality(run: RunFolder, table: FoldTable) -> QualityModel | None:
    """Fit the quality model of the ensemble to the out-of-fold predictions of the folds.

    Args:
        run: Run folder of a cross-validation with all its predictions.
        table: Their metrics.

    Returns:
        The quality model; None if the records hold no properties of predictions, as for instance maps.
    """
    cases = reference_cases(run, table)
    return fit_quality(cases) if cases else None


def reference_cases(run: RunFolder, table: FoldTable) -> list[ReferenceCase]:
    """Return the out-of-fold predictions with their properties, true Dice and reference volumes.

    Args:
        run: Run folder of a cross-validation with all its predictions.
        table: Their metrics.

    Returns:
        One entry per case whose record holds its properties.
    """
    records = CaseRecords(run.predictions)
    rows: dict[str, list[LabelMetrics]] = {}
    for row in table.table.rows:
        rows.setdefault(row.case, []).append(row)
    found = []
    for case, of_case in rows.items():
        record = records.get(case)
        if record is not None and record.prediction is not None and record.prediction.features:
            found.append(
                ReferenceCase(
                    case,
                    table.folds[case],
                    record.prediction.features,
                    {row.label: row.dice for row in of_case if math.isfinite(row.dice)},
                    {row.label: row.volume_ml for row in of_case},
                    {row.label: row.reference_ml for row in of_case},
                )
            )
    return found
