"""Validation errors in words: every mistake of a configuration with its key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from medseg.errors import did_you_mean
from medseg.renamed_keys import renamed


def explain(
    error: ValidationError, cls: type[BaseModel], source: str, lines_of: Mapping[str, int] | None = None
) -> str:
    """Explain all mistakes of a file in one message.

    Args:
        error: The error of pydantic.
        cls: The configuration that was parsed.
        source: File name or words for the source of the values.
        lines_of: Lines of the file by dotted key, to name the line of each mistake.

    Returns:
        The source and the mistake on one line; with several mistakes, their number and one line for each. For a
        union, only the mistakes of the branch that fits best are named.
    """
    lines: list[str] = []
    unions: dict[tuple[int | str, ...], dict[int | str, list[Any]]] = {}
    for item in error.errors(include_url=False):
        item["loc"] = tuple(part for part in item["loc"] if not str(part).startswith("function-"))
        cut = _first_union(cls, item["loc"])
        if cut is None:
            lines.append(_line(cls, item, lines_of))
        else:
            unions.setdefault(item["loc"][:cut], {}).setdefault(item["loc"][cut], []).append(item)
    lines += [line for branches in unions.values() for line in _best_branch(cls, branches, lines_of)]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return f"{source}: {len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)


def _line(cls: type[BaseModel], item: Any, lines_of: Mapping[str, int] | None = None) -> str:
    """Return one mistake in words, with its line in the file if that is known."""
    place, _ = _walk(cls, item["loc"])
    known_line = (lines_of or {}).get(place)
    return _mistake(cls, item, place) + (f" See line {known_line}." if known_line else "")


def _mistake(cls: type[BaseModel], item: Any, place: str) -> str:
    if item["type"] == "extra_forbidden":
        known = _known_keys(_walk(cls, item["loc"][:-1])[1])
        new = renamed(place, known)
        if new:
            return f"{place}: renamed to {' and '.join(new)}.{_renamed_inside(place, item['input'])}"
        hint = did_you_mean(str(item["loc"][-1]), known) or f" Known keys: {', '.join(known)}."
        value = item["input"]
        found = "" if isinstance(value, dict) else f" Found {value!r:.100}."
        return f"{place}: unknown key.{hint}{found}"
    if item["type"] == "missing":
        return f"{place}: missing. Add it."
    message = _reworded(item["msg"])
    value = item["input"]
    shown = "" if isinstance(value, (dict, BaseModel)) else f": found {value!r:.100}"
    sentence = f"{place + ': ' if place else ''}{message}{shown}"
    return sentence if sentence.endswith("?") else f"{sentence}."


def _renamed_inside(group: str, value: Any) -> str:
    """Return the new names of the keys inside a renamed group whose own names changed, too."""
    if not isinstance(value, dict):
        return ""
    words = ""
    for key, inner in value.items():
        old = f"{group}.{key}"
        new = renamed(old)
        if new and not new[0].endswith(f".{key}"):
            words += f" {old}: renamed to {' and '.join(new)}."
        words += _renamed_inside(old, inner)
    return words


def _best_branch(
    cls: type[BaseModel], branches: dict[int | str, list[Any]], lines_of: Mapping[str, int] | None
) -> list[str]:
    """Return the mistakes of the union member that accepts the shape of the value with the fewest mistakes.

    If none accepts the shape, one line says what each of them expects.
    """
    items = [item for branch in branches.values() for item in branch]
    if len({item["loc"][:-1] for item in items}) == 1 == max(map(len, branches.values())) and not any(
        item["type"] == "extra_forbidden" for item in items
    ):
        return [
            _line(cls, {**items[0], "msg": _joined_alternatives(item["msg"] for item in items)}, lines_of)
        ]

    def misfit(branch: list[Any]) -> tuple[int, int, int]:
        near_misses = sum(
            any(words in _line(cls, item) for words in ("Did you mean", "renamed to")) for item in branch
        )
        return -min(len(item["loc"]) for item in branch), len(branch), -near_misses

    return [_line(cls, item, lines_of) for item in min(branches.values(), key=misfit)]


def _first_union(cls: type[BaseModel], location: tuple[int | str, ...]) -> int | None:
    """Return the index in `location` of the first part that is not a key but names a branch of a plain union."""
    for cut in range(len(location)):
        here = _walk(cls, location[:cut])[1]
        if len(_members(here)) > 1:
            return cut
    return None


def _walk(annotation: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return the dotted key that a user would write for a location of pydantic, and the type of its value.

    Where the type of a key is a union, pydantic's location continues with the member of the union that it tried. This
    part is left out. The type is None if it is unknown.
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
    """Return the types of a union without None, or the type itself if it is no union."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [m for part in get_args(annotation) if part is not type(None) for m in _members(part)]
    return [annotation]


def _is_branch(member: Any, tag: int | str) -> bool:
    """Return whether pydantic calls this union member `tag`: its class name or the value of its discriminator."""
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


def _reworded(message: str) -> str:
    """Return a message of pydantic in the words of this project."""
    message = message.removeprefix("Value error, ").rstrip(".")
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping", message)
    message = re.sub(r", unable to parse string as an? \w+", "", message)
    message = message.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    return message.replace("Input should be", "expected")


def _joined_alternatives(messages: Iterable[str]) -> str:
    """Return what the members of a union expect, each once."""
    first, *others = dict.fromkeys(map(_reworded, messages))
    return " or ".join([first, *(other.removeprefix("expected ") for other in others)])


def class_in_words(name: str) -> str:
    """Return the name of a class as words.

    Args:
        name: Name in capitalised words.

    Returns:
        The words in lower case, separated by spaces.

    >>> class_in_words("PredictSettings")
    'predict settings'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
