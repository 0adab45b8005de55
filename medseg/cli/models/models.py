"""``medseg models``: list the models, or describe one."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.models.catalog import ModelEntry, ModelOptions

_LONGEST_VALUE = 40


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
    parser.add_argument("--yaml", action="store_true", help="print the options as YAML, for an experiment")
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
        parsed = parse_options(name, chosen)
        print(parsed.to_yaml() if options.yaml else _keys(parsed), end="")
        if options.input is not None:
            print(_summary(name, options.input, options.classes, chosen))
    return 0


def _listing(entries: list[ModelEntry]) -> str:
    """Return the models by family, one per line: name, parameters and summary."""
    from medseg.models.catalog import FAMILIES
    from medseg.runtime.text_tables import align_columns

    order = [*FAMILIES, *sorted({entry.family for entry in entries} - FAMILIES.keys())]
    entries = sorted(entries, key=lambda entry: order.index(entry.family))
    rows = []
    for entry in entries:
        size = entry.size
        count = f"{size.parameters:,} ({size.in_channels}→{size.num_classes})" if size else "–"
        rows.append((f"  {entry.name}", count, entry.summary))
    lines: list[str] = []
    family = None
    for entry, row in zip(entries, align_columns(rows, "lrl"), strict=True):
        if entry.family != family:
            family = entry.family
            lines.append(FAMILIES.get(family, f"models of the package {family}"))
        lines.append(row)
    lines.append("Parameters are counted with default options; (3→21) means 3 channels and 21 classes.")
    lines.append("medseg models NAME describes a model and its options.")
    return "\n".join(lines)


def _keys(options: ModelOptions) -> str:
    """Return one line per option: its name, its value and the first sentence of its description."""
    from medseg.config import field_descriptions
    from medseg.runtime.text_tables import align_columns
    from medseg.yaml_dialect import to_yaml

    described, rows = field_descriptions(type(options)), []
    for name, value in options.to_plain().items():
        text = " ".join(to_yaml({name: value}).partition(":")[2].split())
        shown = text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
        rows.append((f"  {name}", shown, _first_sentence(described.get(name, ""))))
    note = "Change an option with KEY=VALUE; --yaml prints all values in full."
    return "\n".join([*align_columns(rows, "lll"), note, ""])


def _first_sentence(text: str) -> str:
    """Return the first sentence of a description, without code marks; the point of "et al." ends none."""
    return re.split(r"(?<!al)\. (?=[A-Z])", text.replace("`", ""), maxsplit=1)[0].rstrip(".")


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
