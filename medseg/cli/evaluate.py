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

    from medseg.evaluation import Table, evaluate_cases, pair_files
    from medseg.labels import Labels

    prediction = Path(options.prediction)
    tolerance = options.tolerance_mm or 1.0
    output = Path(options.output) if options.output else None
    if options.reference is None:
        from medseg.experiment.runs import held_out_pairs

        pairs, known, settings = held_out_pairs(prediction)
        labels: Labels | None = known
        tolerance = options.tolerance_mm or settings.tolerance_mm
        output = output or prediction / "evaluation"
    else:
        pairs = pair_files(prediction, Path(options.reference))
        labels = Labels.from_tsv(options.labels) if options.labels else None
    rows = []
    with tqdm(total=len(pairs), unit="case", file=sys.stderr, disable=None) as bar:
        for case_rows in evaluate_cases(pairs, labels, tolerance_mm=tolerance):
            rows.extend(case_rows)
            bar.update()
    table = Table(tuple(rows), tolerance)
    print(table)
    if output is not None:
        table.write_tsv(output / "cases.tsv")
        table.write_summary(output / "summary.json")
        print(f"tables: {output / 'cases.tsv'}, {output / 'summary.json'}")
    return 0
