"""``medseg card``: print the model card of a model folder, after bringing it up to date if requested."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medseg.cli.early_checks import require_paths
from medseg.errors import ModelError


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "card",
        help="print the model card of a model folder, or update it",
        description="Print the README.md of a model folder, which describes data, labels, figures, use, limits and licences. Edit "
        "the file as you like: only the blocks between comments are rewritten when figures change.",
    )
    parser.add_argument("model", help="model folder: RUN/model, or a finished RUN")
    parser.add_argument(
        "--evaluation",
        metavar="FOLDER",
        help="folder that medseg evaluate wrote, whose figures replace those in the card",
    )
    parser.add_argument(
        "--cases",
        default="cases",
        metavar="TEXT",
        help='with --evaluation: what was evaluated, such as "cases of another hospital"',
    )
    parser.add_argument(
        "--new", action="store_true", help="write the card anew; what people wrote in it is lost"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.model], "folder", expected="a model folder", error=ModelError)
    require_paths([options.evaluation])
    from medseg.model_folder.folder import find_model_folder, write_new_card
    from medseg.model_folder.model_card import CARD, add_figures

    folder = find_model_folder(options.model)
    if options.new or not (folder / CARD).is_file():
        write_new_card(folder)
    if options.evaluation is not None:
        add_figures(folder, _summary(Path(options.evaluation)), options.cases)
    print((folder / CARD).read_text(encoding="utf-8"), end="")
    return 0


def _summary(folder: Path) -> dict[str, Any]:
    """Return the summary of an evaluation of label maps, or raise `DataError`."""
    from medseg.errors import DataError
    from medseg.storage.json_files import read_object

    path = folder / "summary.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected the summary of medseg evaluate --output {folder}.")
    summary = read_object(path)
    if not {"labels", "label_intervals", "foreground_mean", "foreground_mean_interval", "cases"} <= set(
        summary
    ):
        raise DataError(
            f"{path}: found no figures of label maps, expected those of medseg evaluate. Evaluate again."
        )
    return summary
