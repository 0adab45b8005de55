"""Typed configuration: YAML that says what differs from typed defaults, and ``key=value`` overrides.

A config is data. There are no includes, no interpolation and no dotted import paths; unknown keys are
refused; all errors of a file are reported at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medseg.errors import ConfigError, nearest

MAX_NESTING = 20


class Config(BaseModel):
    """A frozen group of settings; unknown keys are forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], *, source: str = "config") -> Self:
        """Build from plain values; raise one `ConfigError` that lists every mistake.

        Args:
            values: nested dicts, lists and scalars.
            source: file name shown in messages.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls, source)) from None

    @classmethod
    def load(cls, path: str | Path, *overrides: str) -> Self:
        """Read a YAML file and apply ``a.b=value`` overrides, in order.

        Raises:
            ConfigError: the file is missing, is not YAML, or holds values that do not fit.
        """
        path = Path(path)
        return cls.parse(apply_overrides(read_yaml(path), overrides), source=str(path))

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with the given fields changed."""
        return type(self).parse({**dict(self), **changes}, source=type(self).__name__)

    def to_plain(self) -> dict[str, Any]:
        """Every field as YAML-ready plain values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved config as YAML."""
        return yaml.dump(self.to_plain(), sort_keys=False, Dumper=_Dumper, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader; duplicate keys and deep nesting are refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        raise ConfigError(f"{path}: no such file.{hint} Give the path of a YAML experiment.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}). Give a YAML experiment.") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {reason}. Mend that line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected `key: value` lines.")
    return values


def apply_overrides(values: dict[str, Any], overrides: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Return `values` with each ``a.b=value`` set; values are read as YAML scalars or lists."""
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected key=value, for example train.steps=2000.")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is not a YAML value. Quote it.") from None
        node = result
        *parents, leaf = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is a value, not a group of settings.")
            node = child
        if isinstance(value, dict) and isinstance(node.get(leaf), dict):
            node[leaf] = {**node[leaf], **value}
        else:
            node[leaf] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _explain(error: ValidationError, cls: type[BaseModel], source: str) -> str:
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
        if item["type"] == "extra_forbidden":
            known = _known_keys(cls, item["loc"][:-1])
            hint = nearest(str(item["loc"][-1]), known) or f" Known keys: {', '.join(known)}."
            lines.append(f"{place}: unknown key.{hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing. Add it.")
        else:
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            value = item["input"]
            shown = f": found {value!r}" if isinstance(value, (str, int, float, bool, list, tuple)) else ""
            lines.append(f"{place + ': ' if place else ''}{message}{shown}.")
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return f"{source}: {len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model at `location` below `cls`, as far as the types tell."""
    current: Any = cls
    for part in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            break
        field = current.model_fields.get(str(part))
        if field is None:
            break
        current = _model_in(field.annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, aliases and bottomless nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not allowed, line {event.start_mark.line + 1}")
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise yaml.YAMLError(f"nested deeper than {MAX_NESTING} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.YAMLError(f"a key must be a word or a number, line {key_node.start_mark.line + 1}")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} stands twice, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads 1e-3 as text because it has no dot; scientists mean a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists of scalars in one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        nested_numbers = all(
            isinstance(item, list) and all(isinstance(x, (int, float)) for x in item) for item in sequence
        )
        return super().represent_sequence(tag, sequence, flow_style=flat or nested_numbers)
