"""Typed configurations: YAML with the differences from typed defaults, and ``key=value`` overrides.

A configuration is data. It has no includes, no interpolation and no import paths; unknown keys are refused, and all
mistakes of a file are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from medseg.config_errors import class_in_words, explain
from medseg.errors import ConfigError
from medseg.yaml_dialect import key_lines, parse_yaml, read_yaml, to_yaml


class Config(BaseModel):
    r"""A frozen group of settings that refuses unknown keys.

    >>> class Training(Config):
    ...     steps: int = 100
    >>> Training.parse({"steps": 5}).to_yaml()
    'steps: 5\n'
    >>> Training.parse({"stepps": 5})
    Traceback (most recent call last):
        ...
    medseg.errors.ConfigError: config: stepps: unknown key. Did you mean 'steps'? Found 5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(
        cls,
        values: dict[str, Any],
        *,
        source: str = "config",
        find_lines: Callable[[], Mapping[str, int]] | None = None,
    ) -> Self:
        """Build from plain values.

        Args:
            values: Nested dicts, lists and scalars.
            source: File name for messages.
            find_lines: Function that returns the lines of the file by dotted key; called only if there are mistakes.

        Returns:
            The validated configuration.

        Raises:
            ConfigError: Values do not fit; one message lists every mistake.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source, find_lines() if find_lines else None)) from None

    @classmethod
    def load(cls, path: str | Path, *overrides: str) -> Self:
        """Read a YAML file and apply ``a.b=value`` overrides, in order.

        Args:
            path: YAML file; see `medseg.yaml_dialect`.
            overrides: Settings that replace those of the file.

        Returns:
            The validated configuration.

        Raises:
            ConfigError: The file is missing, is not YAML, or holds values that do not fit.
        """
        path = Path(path)
        given = f" with {' '.join(overrides)}" if overrides else ""
        values = apply_overrides(read_yaml(path), overrides)
        overridden = {override.partition("=")[0] for override in overrides}

        def find_lines() -> dict[str, int]:
            lines = key_lines(path.read_text(encoding="utf-8-sig"))
            return {key: line for key, line in lines.items() if key not in overridden}

        return cls.parse(values, source=f"{path}{given}", find_lines=find_lines)

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed.

        Args:
            changes: New values by field.

        Returns:
            The copy; this configuration is not changed.

        Raises:
            ConfigError: A field is unknown, or a value does not fit.
        """
        return type(self).parse({**dict(self), **changes}, source=class_in_words(type(self).__name__))

    def to_plain(self) -> dict[str, Any]:
        """Return every field as plain values that YAML and JSON can hold."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return every field, defaults included, as YAML."""
        return to_yaml(self.to_plain())


def field_descriptions(config: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions of the fields of a class, from the section ``Attributes`` of its docstring and of its bases.

    Args:
        config: The class.

    Returns:
        Text by name of the field, without line breaks.

    >>> class Paper(Config):
    ...     '''A size of paper.
    ...
    ...     Attributes:
    ...         width: Width in mm,
    ...             without margins.
    ...     '''
    ...     width: float = 210
    >>> field_descriptions(Paper)
    {'width': 'Width in mm, without margins.'}
    """
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, section = cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        entries = re.split(r"^ {4}(\w+): ", re.split(r"^\S", section, maxsplit=1, flags=re.M)[0], flags=re.M)
        texts = (" ".join(text.split()) for text in entries[2::2])
        found |= dict(zip(entries[1::2], texts, strict=True))
    return {name: text for name, text in found.items() if name in config.model_fields}


def differences(found: Config, expected: Config, most: int = 3) -> str:
    """Return the fields in which two configurations differ, in words.

    Args:
        found: The present configuration.
        expected: The configuration that it is compared with.
        most: Largest number of fields to list.

    Returns:
        Text such as ``train.steps: found 6, expected 5; ...``, empty if there are no differences.
    """
    ours, theirs = (dict(_leaves(config.to_plain())) for config in (found, expected))
    different = [key for key in dict.fromkeys((*ours, *theirs)) if ours.get(key) != theirs.get(key)]
    listed = [
        f"{key}: found {ours.get(key)!r:.80}, expected {theirs.get(key)!r:.80}" for key in different[:most]
    ]
    return "; ".join(listed) + (f"; and {len(different) - most} more" if len(different) > most else "")


def _leaves(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` overrides to plain values, in order.

    Args:
        values: Nested dicts, lists and scalars; not changed.
        overrides: Dotted keys with values in YAML. A mapping is merged with an existing one; an empty mapping, as in
            ``data.partially_annotated={}``, replaces it.

    Returns:
        A changed copy of `values`.

    Raises:
        ConfigError: An override is no ``key=value``, its value is no YAML, or its key leads through a value.

    >>> apply_overrides({"train": {"steps": 5}}, ["train.steps=7", "patch={size: [8, 8]}"])
    {'train': {'steps': 7}, 'patch': {'size': [8, 8]}}
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {override!r}: expected key=value, for example train.steps=2000.")
        try:
            value = parse_yaml(text)
        except ValueError:
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
