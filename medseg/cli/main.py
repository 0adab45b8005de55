"""The entry point: parse arguments, run the command, and report a user's mistake in one message with an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medseg.cli.completion import SHELLS, PrintCompletion
from medseg.cli.terminal import safe_output
from medseg.errors import MedsegError, ResourceError, did_you_mean, format_warning
from medseg.io.file_content import permission_denied
from medseg.runtime.machine import installed_version
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason
from medseg.storage.atomic import is_full, write_error

COMMANDS = {
    "demo": "training.demo",
    "inspect": "data.inspect",
    "check": "data.check",
    "view": "data.view",
    "plan": "data.plan",
    "train": "training.train",
    "predict": "prediction.predict",
    "evaluate": "prediction.evaluate",
    "compare": "prediction.compare",
    "models": "models.models",
    "config": "models.config",
    "clean": "training.clean",
    "import": "models.import_model",
    "export": "models.export",
    "quantize": "models.quantize",
    "card": "models.card",
    "push": "models.push",
    "pull": "models.pull",
    "tune": "training.tune",
    "serve": "prediction.serve",
}
"""Each command with the module below `medseg.cli` that defines its parser and runs it."""

RENAMED_OPTIONS = {
    ("predict", "--with"): "renamed to --ensemble-with.",
    ("predict", "--set"): "give settings as key=value without an option, for example overlap=0.25.",
    ("evaluate", "--best"): "use the command: medseg compare RUN RUN.",
    ("evaluate", "--ensembles"): "use the command: medseg compare RUN RUN --ensembles.",
    ("evaluate", "--parts"): "renamed to --components-of.",
    ("import nnunet", "--previous"): "renamed to --first-stage.",
}
"""What replaces an old option, by command and option."""

_KEEP_RESULTS = ("demo", "train", "tune", "predict")  # commands that write results before they end

_MARK = "\ue000"  # a character without meaning, which no file name begins with

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM was received; temporary files are removed before the program ends."""


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors end with code 1, because 2 means that some cases failed."""

    def format_help(self) -> str:
        """Return the help without the code marks of docstrings."""
        return super().format_help().replace("``", "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as usual, but report an unknown option from the command itself, with its new name or a similar option."""
        known, rest = super().parse_known_args(args, namespace)
        unknown = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if unknown is not None:
            new = RENAMED_OPTIONS.get((self.prog.removeprefix("medseg "), unknown))
            if new is not None:
                self.error(f"{unknown}: {new}")
            usage = self.format_usage()
            options = re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage)
            settings = " Settings are given as key=value." if "key=value" in usage else ""
            self.error(f"{unknown}: no such option.{did_you_mean(unknown, options) or settings}")
        return known, rest

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(EXIT_REFUSED, f"medseg: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; heavy libraries are not imported."""
    parser = _Parser(
        prog="medseg",
        description="Volumetric medical image segmentation: train on CT and MR datasets, predict, evaluate.",
        epilog="Start with: medseg demo",
    )
    parser.add_argument("--version", action="version", version=f"medseg {installed_version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script that completes commands, options and files in a shell: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        _module(name).add_parser(commands)
    for command_parser in commands.choices.values():  # accept --debug after the command, too
        command_parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def _module(command: str) -> Any:
    return import_module(f"medseg.cli.{COMMANDS[command]}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; positional arguments after an option, as in ``train FILE --data D train.steps=5``, count, too.

    By itself, argparse accepts a list of positional arguments only in one place.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(_protected(sys.argv[1:] if arguments is None else arguments))
    name = next(
        (n for n in ("overrides", "images", "paths", "runs", "label_maps") if hasattr(options, n)), None
    )
    if rest and name is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and name is not None:
        setattr(options, name, [*getattr(options, name), *rest])
    for key, value in vars(options).items():
        if isinstance(value, str | list):
            setattr(options, key, _unprotected(value))
    return options


def _protected(words: Sequence[str]) -> list[str]:
    """Return the words without ``--``; those after it that begin with a dash get a mark, so that they are no options."""
    if "--" not in words:
        return list(words)
    at = list(words).index("--")
    return [*words[:at], *(f"{_MARK}{word}" if word.startswith("-") else word for word in words[at + 1 :])]


def _unprotected(value: Any) -> Any:
    """Return words without the mark of `_protected`."""
    if isinstance(value, list):
        return [_unprotected(one) for one in value]
    return value.removeprefix(_MARK) if isinstance(value, str) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``medseg``; None for those of the process.

    Returns:
        0 if done, 1 if refused, 2 if some cases failed, 3 if training diverged, 4 if the machine lacked disk space,
        memory, a device or a process, 130 or 143 if stopped; with 3 and more, what was finished is kept.
    """
    # OpenMP reads this when torch is loaded: threads that wait for each other sleep. By default they spin, and with
    # another program on the same cores a training was measured to take fifteen times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with safe_output():
        options = _parsed(arguments)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    previous = _end_on_sigterm()
    formatted, warnings.formatwarning = warnings.formatwarning, format_warning
    try:
        return _answer(options)
    except _Terminated:  # received while another end was reported
        return EXIT_TERMINATED
    finally:
        warnings.formatwarning = formatted
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _answer(options: argparse.Namespace) -> int:
    """Run the command and return its exit code; errors that a user can act on become one message."""
    try:
        module = _module(options.command)
        code = int(module.run(options))
        following = getattr(module, "next_command", None)
        if code == 0 and following is not None and (words := following(options)):
            print(f"next: medseg {' '.join(words)}")
        return code
    except KeyboardInterrupt as stop:
        _ignore_sigterm()
        advice = (
            " Continue with the same command and --skip-existing."
            if hasattr(options, "skip_existing")
            else ""
        )
        kept = f"; finished results are kept.{advice}" if options.command in _KEEP_RESULTS else "."
        print(f"medseg {options.command}: interrupted{kept}", file=sys.stderr)
        return EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has closed it (medseg models | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    except Exception as error:
        _ignore_sigterm()
        known = _for_user(error)
        if known is None or options.debug:
            raise
        print(f"medseg {options.command}: {known}", file=sys.stderr)
        return int(getattr(known, "exit_code", EXIT_REFUSED))


def _for_user(error: Exception) -> MedsegError | None:
    """Return an error that a user can act on with its message and exit code; None for one that only a developer can."""
    if isinstance(error, MedsegError):
        return error
    if is_out_of_memory(error):
        reason = out_of_memory_reason(error)
        return ResourceError(
            f"found too little memory ({reason}). Use smaller patches or batches, or a larger machine."
        )
    if isinstance(error, PermissionError) and error.filename is not None:
        return permission_denied(Path(error.filename))
    if isinstance(error, OSError) and (is_full(error) or error.errno == errno.EFBIG):
        return write_error(Path(error.filename or "the disk"), error)
    return None


def _end_on_sigterm() -> Any:
    """Let SIGTERM end the program as Ctrl-C does; return the previous handler, None outside the main thread."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, end)


def _ignore_sigterm() -> None:
    """Let SIGTERM no longer end the program: torchrun sends it to ranks that already report the loss of another one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
