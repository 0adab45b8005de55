"""JSON that others wrote, read strictly: one meaning or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from medseg.errors import DataError


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file, with or without a byte order mark.

    Raises:
        DataError: missing, not UTF-8, not JSON (with line and column), a key twice in one object, or one of
            NaN and Infinity, which are no JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: key {doubled!r} stands twice in one object. Remove one.")
        return table

    def refused(constant: str) -> NoReturn:
        raise DataError(f"{path}: found {constant}, which is no JSON number. Write a finite number or null.")

    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=refused)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Mend that line."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 text. Save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be read. Flatten it.") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        DataError: as `read_json`, or the top level is something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(
            f"{path}: found a {type(values).__name__} at the top level, expected an object. "
            "Write braces around its keys."
        )
    return values
