"""A whole model of a model zoo, by the names of medseg."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg.errors import ModelError
from medseg.models.base import Model
from medseg.models.catalog import MODELS, parse_options
from medseg.runtime.formatting import listed

_MOST_LISTED = 5


@dataclass(frozen=True)
class PixelStatistics:
    """The numbers by which a zoo normalises pixels from 0 to 255: ``(pixel - mean) / std``.

    Attributes:
        mean: Of red, green and blue.
        std: Of red, green and blue.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def unit_variance_factor(self) -> float:
        """The factor of kernels for channels whose intensities have standard deviation 1.

        A network whose pixels keep their scale has kernels that are smaller by the standard deviation of natural images.
        """
        return fsum(IMAGENET.std) / fsum(self.std)


IMAGENET = PixelStatistics((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and standard deviation of the pixels of ImageNet."""


@dataclass(frozen=True)
class PublishedModel:
    """A published model: its weights by the names of medseg, and what is known about them.

    Attributes:
        zoo: Name of the model zoo.
        model: Registered name of the model.
        options: Options that the weights require.
        advice: Further options with which it was trained.
        tensors: State dict with the names of medseg; the first kernels see red, green and blue.
        stems: Names of the tensors whose second axis is the channels.
        statistics: Normalisation of its images.
        classes: Names of its outputs in order; None if they are not known.
        has_background: Whether the first output is the background.
        left: Names of tensors of the file that medseg does not need, with the reason.
    """

    zoo: str
    model: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    stems: tuple[str, ...]
    statistics: PixelStatistics
    classes: tuple[str, ...] | None
    has_background: bool = True
    advice: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def require_options(self, model: Model, where: str | Path) -> None:
        """Raise unless a model is the one of these weights.

        Args:
            model: The model that is to receive the weights.
            where: File of the weights, for the message.

        Raises:
            ModelError: It is another model, or has other options; all of them are named.
        """
        config = getattr(model, "config", None)
        wanted = parse_options(self.model, self.options)
        if type(config) is not MODELS.get(self.model).options:
            raise ModelError(
                f"{where}: found the weights of {self.model} ({self.zoo}) for {type(model).__name__}, expected those of this "
                f"model. Set model.name to {self.model}, or start from medseg plan DATASET --from {where}."
            )
        other = {
            key: (getattr(config, key), getattr(wanted, key))
            for key in self.options
            if getattr(config, key) != getattr(wanted, key)
        }
        if other:
            listed = "; ".join(
                f"model.{key}: found {_shown(own)}, expected {_shown(needed)}"
                for key, (own, needed) in other.items()
            )
            raise ModelError(
                f"{where}: the weights of {self.model} ({self.zoo}) need other options: {listed}. Set them, or start from "
                f"medseg plan DATASET --from {where}."
            )

    def scaled_to_unit_variance(self) -> dict[str, Tensor]:
        """Return the tensors for channels whose intensities have standard deviation 1."""
        factor = self.statistics.unit_variance_factor
        return {
            name: tensor * factor if name in self.stems else tensor for name, tensor in self.tensors.items()
        }


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)


Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class NameTable:
    """The names of a zoo's tensors in medseg.

    Attributes:
        renames: Pairs of a pattern for a whole name and its replacement; the first that matches counts.
        dropped: Patterns for whole names that medseg does not need, with the reason.
    """

    renames: tuple[tuple[str, Replacement], ...]
    dropped: tuple[tuple[str, str], ...] = ()

    def rename(self, state: Mapping[str, Tensor], zoo: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors by the names of medseg, and those that it does not need with the reason.

        Args:
            state: Tensors by the names of the zoo.
            zoo: Name of the zoo, for messages.

        Returns:
            Renamed tensors, and the names that were left.

        Raises:
            ModelError: A name has no counterpart; the first ones are listed.
        """
        renamed: dict[str, Tensor] = {}
        left: dict[str, str] = {}
        unknown = []
        for name, tensor in state.items():
            reason = next((why for pattern, why in self.dropped if re.fullmatch(pattern, name)), None)
            if reason is not None:
                left[name] = reason
            elif (ours := self._renamed(name)) is None:
                unknown.append(name)
            else:
                renamed[ours] = tensor
        if unknown:
            raise unknown_tensors(unknown, zoo)
        return renamed, left

    def _renamed(self, name: str) -> str | None:
        for pattern, replacement in self.renames:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        return None


def unknown_tensors(names: Sequence[str], zoo: str) -> ModelError:
    """Return the error for tensors that medseg has no counterpart for.

    Args:
        names: Their names.
        zoo: Name of the zoo.

    Returns:
        The error, which lists the first ones.
    """
    return ModelError(
        f"found {listed(names, _MOST_LISTED)} in the weights, expected only tensors of the published models of {zoo} "
        "that medseg offers. Give the file of one of these models; docs/guides/fine_tuning.md lists them."
    )


def count_in(names: Iterable[str], pattern: str) -> int:
    """Return how many different numbers the first group of a pattern has in names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
