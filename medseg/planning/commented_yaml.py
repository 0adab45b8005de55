"""YAML with a comment on each value that gives the reason for it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from medseg.runtime.formatting import single_line

_WIDTH = 110
_COLUMN = 36  # column of comments that fit on the line of their value


@dataclass(frozen=True)
class Explained:
    """A plain value and the reason for it.

    Attributes:
        value: The value.
        reason: The reason; empty for none.
    """

    value: Any
    reason: str = ""


ExplainedValues = Mapping[str, "Explained | ExplainedValues"]


def render_yaml(heading: str, tree: ExplainedValues) -> str:
    """Return YAML under a heading; reasons follow their values, or precede them if they are long.

    Args:
        heading: Text of the comment at the top.
        tree: The values.

    Returns:
        The YAML text.
    """
    return "\n".join([*_heading(heading), *_lines(tree, 0)]) + "\n"


def plain_values(tree: ExplainedValues) -> dict[str, Any]:
    """Return the values without their reasons.

    Args:
        tree: The values.

    Returns:
        Nested dictionaries.
    """
    return {
        key: item.value if isinstance(item, Explained) else plain_values(item) for key, item in tree.items()
    }


def _heading(text: str) -> list[str]:
    """Return comment lines, wrapped; lines that begin with a space are kept unchanged."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line or line.startswith(" "):
            lines.append(f"# {line}".rstrip())
        else:
            lines += _comment(line, 0)
    return lines


def _comment(text: str, indent: int) -> list[str]:
    margin = f"{' ' * indent}# "
    return textwrap.wrap(
        single_line(text), _WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )


def _lines(tree: ExplainedValues, indent: int) -> list[str]:
    lines: list[str] = []
    for key, item in tree.items():
        if isinstance(item, Explained):
            lines += _leaf(f"{' ' * indent}{key}: {_scalar(item.value)}", item.reason, indent)
        elif item:
            lines += [f"{' ' * indent}{key}:", *_lines(item, indent + 2)]
    return lines


def _leaf(line: str, reason: str, indent: int) -> list[str]:
    if not reason:
        return [line]
    with_comment = f"{line:<{_COLUMN}} # {single_line(reason)}"
    return [with_comment] if len(with_comment) <= _WIDTH else [*_comment(reason, indent), line]


def _scalar(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
