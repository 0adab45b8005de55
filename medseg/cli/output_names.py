"""Checks of the files that a command is asked to write, so that a slip in an option replaces no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HTML = (".html", ".htm")
YAML = (".yaml", ".yml")


def check_output_name(name: str | None, option: str, suffixes: Sequence[str]) -> None:
    """Raise unless the name of an output file fits its content.

    Args:
        name: The file; None for no output.
        option: The option, for the message.
        suffixes: Suffixes of such files.

    Raises:
        ConfigError: The file has another suffix.
    """
    from medseg.errors import ConfigError

    if name is not None and Path(name).suffix.lower() not in suffixes:
        raise ConfigError(
            f"{option}: found {name}, expected a file name that ends with {' or '.join(suffixes)}, so that no other file is replaced. "
            "Choose such a name."
        )


def check_report_name(name: str | None, option: str) -> None:
    """Raise unless a JSON file is new or an earlier report.

    Args:
        name: The file; None or ``-`` for no file.
        option: The option, for the message.

    Raises:
        ConfigError: The file has another suffix, or holds something else, such as the description of a dataset.
    """
    from medseg.errors import ConfigError, MedsegError
    from medseg.storage.json_files import read_json

    if name in (None, "-"):
        return
    check_output_name(name, option, (".json",))
    path = Path(str(name))
    if not path.is_file():
        return
    try:
        found = read_json(path)
    except MedsegError:
        found = None
    if not isinstance(found, dict) or "findings" not in found:
        raise ConfigError(
            f"{option}: found {name}, which is no report, expected a new file or an earlier report. Choose another name."
        )
