"""``medseg models``: list the models, or describe one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.models.catalog import ModelEntry


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("models", help="list the models, or describe one", description=__doc__)
    parser.add_argument(
        "name", nargs="?", default="*", help="name, or pattern such as 'unet*' (default: all models)"
    )
    parser.add_argument("options", nargs="*", default=[], metavar="key=value", help="options of the model")
    parser.add_argument(
        "--input",
        metavar="C,X,Y[,Z]",
        help="print shapes, parameters and multiply-adds for an input of this shape",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=2,
        help="number of classes for --input, background included (default: 2)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.config import apply_overrides
    from medseg.errors import ConfigError
    from medseg.models.catalog import MODELS, list_models, parse_options

    names = list_models(options.name)
    if not names:
        raise ConfigError(f"no model matches {options.name!r}.{MODELS.hint(options.name)}")
    if options.input is None and not options.options and names != [options.name]:
        print(_listing([MODELS.get(name) for name in names]))
        return 0
    chosen = apply_overrides({}, options.options)
    for name in names:
        entry = MODELS.get(name)
        print(f"{name}: {entry.summary} ({entry.reference})")
        print(parse_options(name, chosen).to_yaml(), end="")
        if options.input is not None:
            print(_summary(name, options.input, options.classes, chosen))
    return 0


def _listing(entries: list[ModelEntry]) -> str:
    """Return one line per model: name, parameters and summary."""
    from medseg.runtime.text_tables import align_columns

    rows = []
    for entry in entries:
        size = entry.size
        count = f"{size.parameters:,} ({size.in_channels}→{size.num_classes})" if size else "–"
        rows.append((entry.name, count, f"{entry.summary} ({entry.reference})"))
    note = "Parameters are counted with default options; (3→21) means 3 channels and 21 classes."
    return "\n".join([*align_columns(rows, "lrl"), note])


def _summary(name: str, text: str, classes: int, chosen: dict[str, Any]) -> str:
    from medseg.errors import ConfigError
    from medseg.models import build_model
    from medseg.models.summary import summarize

    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--input: found {text!r}, expected channels and sizes such as 1,64,64,64."
        ) from None
    model = build_model(name, in_channels=shape[0], num_classes=classes, **chosen)
    return str(summarize(model, shape))
