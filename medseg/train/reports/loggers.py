"""Loggers of other packages: they receive the reports of a training besides ``metrics.jsonl`` and TensorBoard.

A package adds a logger through an entry point of the group ``medseg.loggers`` that names a class without required arguments::

    [project.entry-points."medseg.loggers"]
    wandb = "my_package.loggers:WandbLogger"

``train.loggers: [wandb]`` chooses it. Only the main process logs. A logger that fails is left out from then on, with a warning,
and never stops a training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol

from medseg.errors import ConfigError, DataWarning, did_you_mean
from medseg.runtime.stop_signals import Interrupted
from medseg.train.reports.reporting import Report

GROUP = "medseg.loggers"
_BUILTIN = {"mlflow": "medseg.train.reports.mlflow_logger:MLflowLogger"}

State = Literal["finished", "stopped", "failed"]
"""How a training ended: to the end, by a signal or by the loop that ran it, or with an error."""


class Logger(Protocol):
    """What a logger does; the three methods are called in this order, from the main process."""

    def start(self, run: Path, settings: Mapping[str, Any]) -> None:
        """Begin to log.

        Args:
            run: Run folder. A resumed training has the folder of the run that it continues.
            settings: All settings of the experiment as plain values. Of absolute paths, only the last part is kept.
        """

    def log(self, report: Report) -> None:
        """Log the figures since the last report.

        Args:
            report: The report.
        """

    def finish(self, state: State) -> None:
        """End the log.

        Args:
            state: How the training ended.
        """


def check_loggers(names: Sequence[str]) -> None:
    """Raise unless every logger is installed.

    Args:
        names: ``train.loggers``.

    Raises:
        ConfigError: A name is unknown.
    """
    known = {*_BUILTIN, *(point.name for point in entry_points(group=GROUP))}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"train.loggers: found {name!r}, expected names of installed loggers: {', '.join(sorted(known))}.{did_you_mean(name, known)} "
                "Install the package of the logger, or remove the name."
            )


def create_loggers(names: Sequence[str]) -> dict[str, Logger]:
    """Import and create loggers.

    Args:
        names: ``train.loggers``.

    Returns:
        The loggers by name.

    Raises:
        ConfigError: A name is unknown, or a logger cannot be created, for example because a package is missing.
    """
    check_loggers(names)
    return {name: _created(name) for name in dict.fromkeys(names)}


def _created(name: str) -> Logger:
    found: list[EntryPoint] = [point for point in entry_points(group=GROUP) if point.name == name]
    try:
        if found:
            external: Logger = found[0].load()()
            return external
        module, _, kind = _BUILTIN[name].partition(":")
        builtin: Logger = getattr(import_module(module), kind)()
        return builtin
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"train.loggers: {name!r} cannot be created ({type(error).__name__}: {error}). Update its package, or remove the name."
        ) from error


class LoggerGroup:
    """Several loggers; one that fails is left out from then on.

    Args:
        loggers: The loggers by name.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._active = dict(loggers)

    @contextmanager
    def session(self, run: Path, settings: Mapping[str, Any]) -> Iterator[None]:
        """Start the loggers, and finish them with the state in which the block ends.

        Args:
            run: Run folder.
            settings: All settings of the experiment.

        Yields:
            Nothing.
        """
        shown = without_folders(settings) if self._active else {}
        self._each(lambda logger: logger.start(run, shown))
        state: State = "failed"
        try:
            yield
            state = "finished"
        except (Interrupted, GeneratorExit, KeyboardInterrupt):
            state = "stopped"
            raise
        finally:
            self._each(lambda logger: logger.finish(state))

    def log(self, report: Report) -> None:
        """Pass a report to every logger.

        Args:
            report: The report.
        """
        self._each(lambda logger: logger.log(report))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._active.items()):
            try:
                call(logger)
            except Exception as error:  # whatever another package raises, the training continues
                del self._active[name]
                warnings.warn(
                    f"train.loggers: {name!r} failed ({type(error).__name__}: {error}) and is left out from now on; the training "
                    "continues, and metrics.jsonl has all reports.",
                    DataWarning,
                    stacklevel=2,
                )


def without_folders(value: Any) -> Any:
    """Return plain values in which only the last part of absolute paths is kept, because folders name people and machines.

    Args:
        value: Plain values.

    Returns:
        A copy.

    >>> without_folders({"data": {"path": "/home/ada/liver"}, "name": "liver"})
    {'data': {'path': 'liver'}, 'name': 'liver'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    return value
