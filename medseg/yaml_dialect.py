"""The YAML that medseg reads and writes: plain data, without aliases, duplicate keys or tags."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import ConfigError, no_such_path

MAX_NESTING = 20
MAX_BYTES = 4 * 2**20  # the parser takes about a second per million bytes
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
)  # bad dates and tags raise the others


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text.

    Args:
        text: YAML without aliases, duplicate keys and tags, nested at most `MAX_NESTING` levels deep.

    Returns:
        Nested dicts, lists and scalars; None for empty text.

    Raises:
        ValueError: The text is no such YAML; the message names the reason and the line.

    >>> parse_yaml("{steps: 1e3, name: unet}")
    {'steps': 1000.0, 'name': 'unet'}
    """
    try:
        return copy.deepcopy(_parsed(text))
    except _NOT_YAML as error:
        raise ValueError(" ".join(str(error).split()).replace(' in "<unicode string>", ', ", ")) from None


@lru_cache(maxsize=32)
def _parsed(text: str) -> Any:
    """Return the value of YAML text, which must not be changed: one command reads the config of a run or model many times."""
    return yaml.load(text, Loader=_Loader)


def to_yaml(values: Any) -> str:
    """Return plain values as YAML; lists of numbers stay on one line.

    Args:
        values: Nested dicts, lists and scalars.

    Returns:
        YAML text with keys in the given order, which `parse_yaml` reads.

    >>> print(to_yaml({"patch": {"size": [32, 32, 16]}}), end="")
    patch:
      size: [32, 32, 16]
    """
    text: str = yaml.dump(values, sort_keys=False, Dumper=_Dumper, width=110)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        path: UTF-8 file, with or without a byte order mark; an empty file is an empty mapping.

    Returns:
        The values by key, in the order of the file.

    Raises:
        ConfigError: The file is missing, is larger than `MAX_BYTES`, is not text, is not YAML or holds something other
            than a mapping.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"{path}: found {size:,} bytes, expected at most {MAX_BYTES:,}, as configurations have. Give a YAML experiment."
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(no_such_path(path, "file", fix="Give the path of a YAML experiment.")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}). Give a YAML experiment.") from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}. Fix that line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected `key: value` lines.")
    return values


def key_lines(text: str) -> dict[str, int]:
    r"""Return the line of every key of a YAML mapping.

    Args:
        text: YAML that `parse_yaml` reads.

    Returns:
        Lines, from 1, by dotted key; keys inside lists are left out.

    >>> key_lines("name: a\ntrain:\n  steps: 5\n")
    {'name': 1, 'train': 2, 'train.steps': 3}
    """
    lines: dict[str, int] = {}

    def visit(node: Any, where: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{where}{key.value}"
                lines[name] = key.start_mark.line + 1
                visit(value, f"{name}.")

    visit(yaml.compose(text, Loader=_Loader), "")
    return lines


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, aliases and deep nesting, and reads ``1e-3`` as a number."""

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
                raise yaml.YAMLError(f"key {key!r} occurs twice, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists of scalars on one line, and no aliases."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        nested_numbers = all(
            isinstance(item, list) and all(isinstance(x, (int, float)) for x in item) for item in sequence
        )
        return super().represent_sequence(tag, sequence, flow_style=flat or nested_numbers)

    def ignore_aliases(self, data: Any) -> bool:
        return True  # the loader refuses aliases


# YAML 1.1 reads 1e-3 as text because it has no dot; scientists mean a number.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
