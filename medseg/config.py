"""Typed configuration: YAML that says what differs from typed defaults, and ``key=value`` overrides.

A config is data. There are no includes, no interpolation and no dotted import paths; unknown keys are
refused; all errors of a file are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medseg.errors import ConfigError, did_you_mean

MAX_NESTING = 20
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
)  # bad dates and tags raise the others


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
        given = f" with {' '.join(overrides)}" if overrides else ""
        return cls.parse(apply_overrides(read_yaml(path), overrides), source=f"{path}{given}")

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with the given fields changed."""
        return type(self).parse({**dict(self), **changes}, source=_words_of(type(self).__name__))

    def to_plain(self) -> dict[str, Any]:
        """Every field as YAML-ready plain values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved config as YAML."""
        return yaml.dump(self.to_plain(), sort_keys=False, Dumper=_Dumper, width=110)


def _reworded(message: str) -> str:
    """A message of pydantic in the words of this project's own."""
    message = message.removeprefix("Value error, ").rstrip(".")
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping", message)
    message = re.sub(r", unable to parse string as an? \w+", "", message)
    message = message.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    return message.replace("Input should be", "expected")


def _joined_alternatives(messages: Iterable[str]) -> str:
    """What the members of a union expect, each once."""
    first, *others = dict.fromkeys(map(_reworded, messages))
    return " or ".join([first, *(other.removeprefix("expected ") for other in others)])


def _words_of(name: str) -> str:
    """``PredictSettings`` as ``predict settings``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def differences(found: Config, expected: Config, most: int = 3) -> str:
    """The fields in which two configs differ, in words: ``train.steps: found 6, expected 5; ...``."""
    ours, theirs = (dict(_leaves(config.to_plain())) for config in (found, expected))
    apart = [key for key in dict.fromkeys((*ours, *theirs)) if ours.get(key) != theirs.get(key)]
    told = [f"{key}: found {ours.get(key)!r:.80}, expected {theirs.get(key)!r:.80}" for key in apart[:most]]
    return "; ".join(told) + (f"; and {len(apart) - most} more" if len(apart) > most else "")


def _leaves(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader; duplicate keys and deep nesting are refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise ConfigError(f"{path}: no such file.{hint} Give the path of a YAML experiment.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}). Give a YAML experiment.") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        reason = " ".join(str(error).split()).replace(' in "<unicode string>", ', ", ")
        raise ConfigError(f"{path}: not valid YAML: {reason}. Mend that line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected `key: value` lines.")
    return values


def apply_overrides(values: dict[str, Any], overrides: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Return `values` with each ``a.b=value`` set; values are read as YAML.

    A mapping joins the one that is there, ``data.partially_annotated={}`` empties it.

    Raises:
        ConfigError: no ``key=value``, no YAML, or a group of settings that is none.
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {override!r}: expected key=value, for example train.steps=2000.")
        try:
            value = yaml.load(text, Loader=_Loader)
        except _NOT_YAML:
            raise ConfigError(f"override {override!r}: {text!r} is not a YAML value. Quote it.") from None
        node = result
        *parents, leaf = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is a value, not a group of settings.")
            node = child
        if value and isinstance(value, dict) and isinstance(node.get(leaf), dict):
            node[leaf] = {**node[leaf], **value}
        else:
            node[leaf] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _explain(error: ValidationError, cls: type[BaseModel], source: str) -> str:
    """All mistakes of a file in one message; of a union's branches, only the one that fits best."""
    lines: list[str] = []
    unions: dict[tuple[int | str, ...], dict[int | str, list[Any]]] = {}
    for item in error.errors(include_url=False):
        item["loc"] = tuple(part for part in item["loc"] if not str(part).startswith("function-"))
        cut = _first_union(cls, item["loc"])
        if cut is None:
            lines.append(_line(cls, item))
        else:
            unions.setdefault(item["loc"][:cut], {}).setdefault(item["loc"][cut], []).append(item)
    lines += [line for branches in unions.values() for line in _best_branch(cls, branches)]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return f"{source}: {len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)


def _line(cls: type[BaseModel], item: Any) -> str:
    place, _ = _walk(cls, item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(_walk(cls, item["loc"][:-1])[1])
        hint = did_you_mean(str(item["loc"][-1]), known) or f" Known keys: {', '.join(known)}."
        return f"{place}: unknown key.{hint}"
    if item["type"] == "missing":
        return f"{place}: missing. Add it."
    message = _reworded(item["msg"])
    value = item["input"]
    shown = "" if isinstance(value, (dict, BaseModel)) else f": found {value!r:.100}"
    sentence = f"{place + ': ' if place else ''}{message}{shown}"
    return sentence if sentence.endswith("?") else f"{sentence}."


def _best_branch(cls: type[BaseModel], branches: dict[int | str, list[Any]]) -> list[str]:
    """The mistakes of the union member that fits best: that took the value's shape, with the fewest mistakes.

    If none took the shape, one line says what each of them wanted.
    """
    items = [item for branch in branches.values() for item in branch]
    if len({item["loc"][:-1] for item in items}) == 1 == max(map(len, branches.values())) and not any(
        item["type"] == "extra_forbidden" for item in items
    ):
        return [_line(cls, {**items[0], "msg": _joined_alternatives(item["msg"] for item in items)})]

    def misfit(branch: list[Any]) -> tuple[int, int, int]:
        near_misses = sum("Did you mean" in _line(cls, item) for item in branch)
        return -min(len(item["loc"]) for item in branch), len(branch), -near_misses

    return [_line(cls, item) for item in min(branches.values(), key=misfit)]


def _first_union(cls: type[BaseModel], location: tuple[int | str, ...]) -> int | None:
    """Index in `location` of the first part that is no key but names a branch of a plain union."""
    for cut in range(len(location)):
        here = _walk(cls, location[:cut])[1]
        if len(_members(here)) > 1:
            return cut
    return None


def _walk(annotation: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted key that `location` means to a user, and the type at its end (None if types do not tell).

    Pydantic's locations hold, after a key whose type is a union, the branch that was tried.
    """
    keys: list[str] = []
    for part in location:
        members = _members(annotation)
        if len(members) > 1:
            annotation = next((member for member in members if _is_branch(member, part)), None)
        else:
            keys.append(str(part))
            annotation = _inside(members[0] if members else None, part)
    return ".".join(keys), annotation


def _members(annotation: Any) -> list[Any]:
    """The types of a union without None; of any other type, itself."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [m for part in get_args(annotation) if part is not type(None) for m in _members(part)]
    return [annotation]


def _is_branch(member: Any, tag: int | str) -> bool:
    """Whether pydantic calls this union member `tag`: its class name, or its discriminator's value."""
    if not _is_model(member):
        return False
    literals = [get_args(field.annotation) for field in member.model_fields.values()]
    return member.__name__ == tag or any(tag in values for values in literals)


def _inside(annotation: Any, key: int | str) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(key))
        return field.annotation if field else None
    arguments = get_args(annotation)
    if isinstance(key, int) and get_origin(annotation) is tuple and Ellipsis not in arguments:
        return arguments[key] if key < len(arguments) else None
    return arguments[-1 if get_origin(annotation) is dict else 0] if arguments else None


def _known_keys(annotation: Any) -> list[str]:
    models = [member for member in _members(annotation) if _is_model(member)]
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


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


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists of scalars in one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        nested_numbers = all(
            isinstance(item, list) and all(isinstance(x, (int, float)) for x in item) for item in sequence
        )
        return super().represent_sequence(tag, sequence, flow_style=flat or nested_numbers)

    def ignore_aliases(self, data: Any) -> bool:
        return True  # what is written must be readable, and aliases are refused


# YAML 1.1 reads 1e-3 as text because it has no dot; scientists mean a number.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
