"""``medseg evaluate``: compare label maps with references; distances in mm."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("evaluate", help="compare label maps with references", description=__doc__)
    parser.add_argument(
        "prediction", help="label map, folder of label maps, or a RUN with its held-out cases"
    )
    parser.add_argument("reference", nargs="?", help="label map or folder; not needed for a RUN")
    parser.add_argument("--labels", metavar="TSV", help="table with the columns value and name")
    parser.add_argument("--tolerance-mm", type=float, metavar="MM", help="of the surface Dice; 1 unless told")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="for cases.tsv and summary.json")


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from medseg.errors import DataError
    from medseg.evaluation import Table, evaluate_cases, pair_files
    from medseg.evaluation.surface import checked_tolerance
    from medseg.labels import Labels

    prediction = Path(options.prediction)
    tolerance = options.tolerance_mm
    output = Path(options.output) if options.output else None
    if options.reference is None:
        from medseg.experiment.runs import held_out_pairs

        pairs, known, settings = held_out_pairs(prediction)
        labels: Labels | None = known
        tolerance = settings.tolerance_mm if tolerance is None else tolerance
        output = output or prediction / "evaluation"
    else:
        pairs = pair_files(prediction, Path(options.reference))
        labels = Labels.from_tsv(options.labels) if options.labels else None
    tolerance = checked_tolerance(1.0 if tolerance is None else tolerance)
    rows, failed = [], 0
    for pair in tqdm(pairs, unit="case", file=sys.stderr, disable=None):
        try:
            rows.extend(next(evaluate_cases([pair], labels, tolerance_mm=tolerance)))
        except DataError as error:
            if len(pairs) == 1:
                raise
            failed += 1
            tqdm.write(str(error), file=sys.stderr)
    if not rows:
        raise DataError(
            f"{prediction}: none of {len(pairs)} cases could be measured. Mend what is named above."
        )
    table = Table(tuple(rows), tolerance)
    print(table)
    if failed:
        print(f"{failed} of {len(pairs)} cases could not be measured and are not in the means")
    if output is not None:
        table.write_tsv(output / "cases.tsv")
        table.write_summary(output / "summary.json")
        print(f"tables: {output / 'cases.tsv'}, {output / 'summary.json'}")
    return 2 if failed else 0
