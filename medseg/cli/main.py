"""Entry point: parse, run the verb, turn a user's mistake into one sentence and an exit code."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from medseg.errors import MedsegError, did_you_mean

COMMANDS = {
    "demo": "training.demo",
    "inspect": "data.inspect",
    "plan": "data.plan",
    "train": "training.train",
    "predict": "prediction.predict",
    "evaluate": "prediction.evaluate",
    "compare": "prediction.compare",
    "models": "models.models",
    "config": "models.config",
    "import": "models.import_model",
    "export": "models.export",
}
"""Each command and the module below `medseg.cli` that holds its parser and its action."""

RENAMED_OPTIONS = {
    ("predict", "--with"): "renamed to --ensemble-with.",
    ("predict", "--set"): "give settings as key=value without an option, for example overlap=0.25.",
    ("evaluate", "--best"): "use the command: medseg compare RUN RUN.",
    ("evaluate", "--ensembles"): "use the command: medseg compare RUN RUN --ensembles.",
    ("evaluate", "--parts"): "renamed to --components-of.",
    ("import nnunet", "--previous"): "renamed to --first-stage.",
}
"""What replaces an old option, by command and option."""

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """The system asked the program to end; temporary files are removed on the way out."""


class _Parser(argparse.ArgumentParser):
    """Usage errors end with code 1, because 2 means that some cases failed."""

    def format_help(self) -> str:
        """The help without the marks of code that docstrings hold."""
        return super().format_help().replace("``", "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, but an option that a verb does not know is told by the verb, with the nearest that it knows."""
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
    """The parser of all verbs; imports nothing heavy."""
    parser = _Parser(
        prog="medseg",
        description="Volumetric medical image segmentation: train on CT and MR datasets, predict, evaluate.",
        epilog="Start with: medseg demo",
    )
    parser.add_argument("--version", action="version", version=f"medseg {version('medseg')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in COMMANDS:
        _module(verb).add_parser(verbs)
    for verb_parser in verbs.choices.values():  # behind the verb, too
        verb_parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def _module(verb: str) -> Any:
    return import_module(f"medseg.cli.{COMMANDS[verb]}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options; what stands behind a flag, as in ``train FILE --data D train.steps=5``, joins the verb's list.

    The parser by itself takes a list only where it begins.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    name = next((n for n in ("overrides", "images", "paths", "runs") if hasattr(options, n)), None)
    if rest and name is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and name is not None:
        setattr(options, name, [*getattr(options, name), *rest])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 done; 1 refused; 2 some cases failed; 3 training diverged; 130 or 143 stopped, state kept.
    """
    # Read by OpenMP when torch is loaded: threads that wait for each other sleep. By default they spin, and where
    # another program wants the same cores a training was measured to take fifteen times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parsed(arguments)
    previous = _end_on_sigterm()
    try:
        return int(_module(options.verb).run(options))
    except MedsegError as error:
        if options.debug:
            raise
        print(f"medseg {options.verb}: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", EXIT_REFUSED))
    except KeyboardInterrupt as stop:
        print(f"medseg {options.verb}: interrupted; what was finished is kept.", file=sys.stderr)
        return EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone (medseg models | head); say nothing more to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _end_on_sigterm() -> Any:
    """Let SIGTERM end the program as Ctrl-C does; returns the former handler, None outside the main thread."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, end)
