"""The YAML file of a search: what to vary, how many trials, how long each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medseg.config import Config, apply_overrides
from medseg.errors import ConfigError
from medseg.experiment.config import ExperimentConfig
from medseg.train.settings import seconds_of

Value = bool | int | float | str | list[Any] | dict[str, Any] | None


def _duration(value: str) -> str:
    seconds_of(value)
    return value


class Range(Config):
    """A range of numbers.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether values are drawn evenly on a logarithmic scale.
        integer: Whether only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        """Refuse empty ranges, and logarithms of numbers that are not positive."""
        if not self.low < self.high:
            raise ValueError(f"found low {self.low:g} and high {self.high:g}, expected a lower low")
        if self.log and self.low <= 0:
            raise ValueError(f"found low {self.low:g} with log, expected a positive number")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError("found a fraction as a limit of whole numbers")
        return self


class TuneSettings(Config):
    """What ``medseg tune`` varies.

    Attributes:
        format: Version of this file.
        search: Key of the experiment, such as ``train.optimizer.lr``, with the values to choose from: a list, or a range
            with ``low`` and ``high``, and with ``log`` or ``integer``.
        overrides: Settings of all trials, as ``key=value``, the default included.
        trials: Number of trials besides the default settings.
        trial_time: Time of the training loop of each trial, such as ``3m``.
        pruning: Whether trials whose validation is below the median of the others at the same time end early.
        seed: Seed of the choice of values.
    """

    format: Literal[1] = 1
    search: dict[str, Range | Annotated[list[Value], Field(min_length=2)]] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    trials: int = Field(20, ge=1)
    trial_time: Annotated[str, AfterValidator(_duration)] = "5m"
    pruning: bool = True
    seed: int = 0

    @property
    def trial_seconds(self) -> float:
        """The time of each trial in seconds."""
        return seconds_of(self.trial_time)

    def check(self, base: dict[str, Any]) -> None:
        """Raise `ConfigError` unless every value that could be chosen suits the experiment.

        Args:
            base: The experiment to tune, as its YAML file has it.
        """
        self.experiment(base, {})
        for key, space in self.search.items():
            ends = (
                [_number(space, one) for one in (space.low, space.high)]
                if isinstance(space, Range)
                else space
            )
            for value in ends:
                self.experiment(base, {key: value})
        if {"train.max_time", "train.steps"} & set(self.search):
            raise ConfigError(
                "search: found the length of training, expected settings to compare at equal time. Remove train.steps and "
                "train.max_time, and set trial_time."
            )

    def values(self, base: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
        """Return the values of an experiment with the common overrides and chosen values.

        Args:
            base: The experiment to tune, as its YAML file has it; not changed.
            chosen: Value by key.

        Returns:
            Nested values.

        Raises:
            ConfigError: A key leads through a value.
        """
        plain = apply_overrides(base, self.overrides)
        for key, value in chosen.items():
            _set(plain, key, value)
        return plain

    def experiment(self, base: dict[str, Any], chosen: dict[str, Any]) -> ExperimentConfig:
        """Return the experiment of one trial.

        Args:
            base: The experiment to tune, as its YAML file has it.
            chosen: Value by key.

        Returns:
            The experiment with these values, the common overrides and the time of a trial.

        Raises:
            ConfigError: A key is unknown, or values do not fit.
        """
        plain = self.values(base, chosen)
        for key, value in (("train.steps", None), ("train.max_time", self.trial_time)):
            _set(plain, key, value)
        listed = ", ".join(f"{key}={value}" for key, value in chosen.items())
        return ExperimentConfig.parse(plain, source=f"trial with {listed}" if listed else "default settings")


def default_values(base: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the values that an experiment has for some keys.

    Args:
        base: The experiment, as its YAML file has it; what it lacks has its default.
        keys: Dotted keys.

    Returns:
        Value by key; keys that the experiment does not have are left out.
    """
    sources = (base, ExperimentConfig.parse(base).to_plain())
    found = {
        key: next((one for one in (_get(plain, key) for plain in sources) if one is not _MISSING), _MISSING)
        for key in keys
    }
    return {key: value for key, value in found.items() if value is not _MISSING}


def _get(plain: dict[str, Any], key: str) -> Any:
    node: Any = plain
    for part in key.split("."):
        node = node.get(part, _MISSING) if isinstance(node, dict) else _MISSING
    return node


_MISSING = object()


def _number(space: Range, value: float) -> float | int:
    return int(value) if space.integer else value


def _set(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested dicts, in place."""
    *parents, leaf = key.split(".")
    node = plain
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"search: {key}: {parent} is a value, not a group of settings. Remove it.")
        node = child
    node[leaf] = value
