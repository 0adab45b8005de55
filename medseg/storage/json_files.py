"""Strict reading of JSON files: ambiguous content is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from medseg.errors import DataError

MAX_BYTES = (
    32 * 2**20
)  # some hundred thousand cases; larger files take long and a multiple of their size in memory


def parse_json(text: str | bytes) -> Any:
    """Return the values of a JSON text that medseg wrote, for callers that have an answer to a damaged one.

    Args:
        text: The text.

    Returns:
        Nested dicts, lists and scalars.

    Raises:
        ValueError: The text is not valid, or nested too deeply, for which Python raises another error.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file, with or without a byte order mark.

    Args:
        path: The file.

    Returns:
        Nested dicts, lists and scalars.

    Raises:
        DataError: The file is missing, larger than `MAX_BYTES`, not UTF-8 or not JSON (with line and column), a number has more than 4300 digits, a key occurs twice in one object,
            or it holds NaN or Infinity, which JSON does not have.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: key {doubled!r} occurs twice in one object. Remove one.")
        return table

    text = ""

    def refused(constant: str) -> NoReturn:
        raise DataError(
            f"{path}: {_line_of(text, constant)}found {constant}, expected a number that JSON has. Correct it: write a finite number or null."
        )

    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(
                f"{path}: found {size:,} bytes, expected at most {MAX_BYTES:,}, as descriptions have. Give the right file."
            )
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=refused)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: found no valid JSON ({error.msg}), expected it. Fix that line."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 text. Save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except ValueError:  # Python refuses to convert such numbers
        raise DataError(
            f"{path}: found a whole number of more than 4300 digits. Write a shorter one."
        ) from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be read. Flatten it.") from None


def _line_of(text: str, constant: str) -> str:
    """Return the line of a constant, if it occurs in one line only, for a message."""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if constant in line]
    return f"line {lines[0]}: " if len(lines) == 1 else ""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Args:
        path: The file.

    Returns:
        The values by key, in the order of the file.

    Raises:
        DataError: `read_json` raises it, or the top level is something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(
            f"{path}: found a {type(values).__name__} at the top level, expected an object. "
            "Write braces around its keys."
        )
    return values
