"""Tab completion of commands, options and files in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
# Names of arguments whose values are no files: for them a shell offers nothing instead of file names.
_NO_FILES = {"name", "options", "model_name", "fold", "axis"}


class PrintCompletion(argparse.Action):
    """An option that prints the completion script of a shell and ends the program, as ``--version`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print the script."""
        print(completion_script(parser, str(values)))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell.

    Args:
        parser: The parser of all commands.
        shell: One of `SHELLS`.

    Returns:
        The script, which completes commands, options, choices and file names.
    """
    import shtab

    for action in _actions(parser):
        if action.nargs != 0 and not action.choices and action.type is None and action.dest not in _NO_FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                yield from _actions(command)
        else:
            yield action
