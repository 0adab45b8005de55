"""Generated pages of the documentation: configuration, models, commands and API.

MkDocs calls `on_files` of this hook. The pages are generated from the code, so that they always agree with it.
"""

from __future__ import annotations

import argparse
import ast
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Docstring
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medseg.config import field_descriptions

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of the site."""
    pages = {
        "reference/configuration.md": configuration_page(),
        "reference/models.md": models_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def configuration_page() -> str:
    """Return the page with every key of an experiment, its type, default and meaning."""
    from medseg.experiment.config import ExperimentConfig

    lines = [
        "# Configuration",
        "",
        "An experiment is one YAML file that contains only what differs from the defaults. This page lists every key. "
        "`medseg config FILE` prints an experiment with all defaults filled in, and `medseg config --schema` prints the "
        "JSON schema from which an editor can complete keys. Any key can be changed on the command line as `key=value`, for "
        "example `train.steps=2000`. The options under `model` depend on the model; see [Models](models.md).",
        "",
    ]
    lines += ["## Experiment", "", *_paragraphs(ExperimentConfig), *_table(ExperimentConfig, "")]
    for name, field in ExperimentConfig.model_fields.items():
        for key, group in _groups(name, field):
            if key != "model":
                lines += [f"## {key}", "", *_paragraphs(group), *_table(group, f"{key}.")]
    return "\n".join(lines) + "\n"


def models_page() -> str:
    """Return the page with all registered models and the options of each family."""
    from medseg.models.catalog import MODELS, list_models

    lines = [
        "# Models",
        "",
        "An experiment selects a model by its `name` under `model:`, together with any of its options. "
        "`medseg models NAME --input 1,64,64,64` prints the stages, shapes, parameters and multiply-adds of a network.",
        "",
        "| name | dimensions | parameters | description | reference |",
        "|---|---|---|---|---|",
    ]
    families: dict[type[BaseModel], list[str]] = {}
    for name in list_models():
        entry = MODELS.get(name)
        size = f"{entry.size.parameters:,}" if entry.size else ""
        lines.append(f"| `{name}` | {entry.dims} | {size} | {entry.summary} | {entry.reference} |")
        families.setdefault(entry.options, []).append(name)
    lines += [
        "",
        "Parameters are counted with the default options and the channels and classes of the reference.",
        "",
    ]
    for options, names in families.items():
        lines += [
            f"## {options.__name__}",
            "",
            "Models: " + ", ".join(f"`{name}`" for name in names) + ".",
            "",
        ]
        lines += [*_paragraphs(options), *_table(options, "model.")]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return the page with the help of every command, from its parser."""
    from medseg.cli.main import build_parser

    parser = build_parser()
    lines = [
        "# Commands",
        "",
        "Every command is a thin wrapper around the Python API. "
        "[Systems and security](systems.md#exit-codes) lists the exit codes.",
        "",
    ]
    for name, command in _commands(parser):
        lines += [f"## medseg {name}", "", _plain(command.description or ""), ""]
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        lines += ["```text", usage, "```", "", *_arguments(command)]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Return the page with the public names of medseg and of its packages."""
    import medseg

    lines = [
        "# Python API",
        "",
        "The names on this page can be imported from `medseg`, or from the package named in the heading. Everything else is "
        "internal and may change without notice.",
        "",
        "## medseg",
        "",
    ]
    lines += [f"::: {_home(medseg, name)}\n" for name in medseg.__all__]
    for package in ("io", "losses", "models", "evaluation"):
        module = __import__(f"medseg.{package}", fromlist=["__all__"])
        own = [name for name in module.__all__ if name not in medseg.__all__]
        lines += [f"## medseg.{package}", "", *(f"::: {_home(module, name)}\n" for name in own)]
    return "\n".join(lines) + "\n"


def _home(module: Any, name: str) -> str:
    """Return the dotted path of a public name in the module that defines it, as the stub file says."""
    package = module.__name__
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    for statement in stub.body:
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            return f"{package}.{statement.module}.{name}"
    raise LookupError(f"{package}: the stub file does not import {name}")


def _groups(key: str, field: FieldInfo) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the config class of a key, if it is one, and those of the groups inside it."""
    for group in _config_classes(field.annotation):
        yield key, group
        for name, inner in group.model_fields.items():
            yield from _groups(f"{key}.{name}", inner)


def _config_classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return []
    return [found for part in typing.get_args(annotation) for found in _config_classes(part)]


def _table(config: type[BaseModel], prefix: str) -> list[str]:
    """Return the rows of a Markdown table, one per field of a config class."""
    described = field_descriptions(config)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in config.model_fields.items():
        kind = _type_text(config, name)
        rows.append(
            f"| `{prefix}{name}` | {kind} | {_default_text(field)} | {_cell(described.get(name, ''))} |"
        )
    return [*rows, ""]


def _paragraphs(config: type[BaseModel]) -> list[str]:
    texts = [
        section.value
        for section in Docstring(config.__doc__ or "").parse("google", warnings=False)
        if section.kind.value == "text"
    ]
    return ["\n".join(" ".join(text.split()) for text in texts), ""]


def _type_text(config: type[BaseModel], name: str) -> str:
    """Return the type of a field in words, from the JSON schema."""
    schema = config.model_json_schema(mode="validation")
    return _schema_text(schema["properties"][name], schema.get("$defs", {}))


def _schema_text(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = definitions.get(name, {})
        return "group" if target.get("type") == "object" else _schema_text(target, definitions)
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " \\| ".join(dict.fromkeys(_schema_text(part, definitions) for part in schema["anyOf"]))
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_schema_text(items, definitions)}"
    if kind == "object":
        return "mapping"
    return "true \\| false" if kind == "boolean" else str(kind)


def _default_text(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, default=_plain_value)}`"


def _plain_value(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command and subcommand that has no subcommands of its own."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for word, command in action.choices.items():
            yield from _commands(command, f"{name} {word}".strip())
    if not nested and name:
        yield name, parser


def _arguments(command: argparse.ArgumentParser) -> list[str]:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in command._actions:
        if action.help in (argparse.SUPPRESS, None) or isinstance(action, argparse._HelpAction):
            continue
        words = (
            ", ".join(f"`{word}`" for word in action.option_strings) or f"`{action.metavar or action.dest}`"
        )
        if action.option_strings and action.nargs != 0:
            words += f" `{action.metavar or ''}`" if action.metavar else ""
        choices = f" One of {', '.join(f'`{c}`' for c in action.choices)}." if action.choices else ""
        rows.append(f"| {words} | {_cell(_plain(str(action.help)))}{choices} |")
    return [*rows, ""]


def _plain(text: str) -> str:
    return text.replace("``", "`").replace("%%", "%")


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|").replace("<", "&lt;")
