"""How the logits of several networks become one label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import ModelError
from medseg.inference.sliding.labelling import BACKGROUND_MARGIN, Argmax, FiniteCheck, LabelRule, label_rule
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel


@dataclass(frozen=True)
class PartsArgmax:
    """The class with the largest logit of the last network that finds one.

    Each network has outputs for a background and for its own labels, one after the other on the last axis of the logits. A
    label map starts as background, and what each network in turn does not take for background is written over it, as
    TotalSegmentator combines its part models.

    If the class is the same in several voxels, the same network found it in all of them and all later networks found background,
    since no label belongs to two networks. Both are largest in every mixture of the logits, too, as `Argmax` explains.

    Attributes:
        values: Label value of each class in files, background first.
        classes_of_parts: The class of each output of each network; that of the first is 0.
    """

    values: NDArray[Any]
    classes_of_parts: tuple[tuple[int, ...], ...]

    @property
    def background_logits(self) -> tuple[float, ...]:
        """The logits `(k,)` of a voxel for which no window was predicted."""
        each = ((BACKGROUND_MARGIN, *(0.0,) * (len(part) - 1)) for part in self.classes_of_parts)
        return tuple(value for part in each for value in part)

    @property
    def background_probabilities(self) -> tuple[float, ...]:
        """The probabilities, one per class, of a voxel outside the box to which the image is cropped for the network."""
        return (1.0, *(0.0,) * (len(self.values) - 1))

    @cached_property
    def _tables(self) -> dict[torch.device, list[Tensor]]:
        """The classes of the outputs of each network, on each device that asked for them."""
        return {}

    def _parts(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits `(*shape, k)` of each network, and the classes of its outputs."""
        device = logits.device
        if device not in self._tables:
            self._tables[device] = [
                torch.tensor(part, dtype=torch.int16, device=device) for part in self.classes_of_parts
            ]
        pieces = logits.split([len(part) for part in self.classes_of_parts], -1)
        yield from zip(pieces, self._tables[device], strict=True)

    def classes(self, logits: Tensor, check: FiniteCheck | None = None) -> Tensor:
        """Return classes `(*shape)` int16 of logits `(*shape, k)` of all networks, see `LabelRule`."""
        result = torch.zeros(logits.shape[:-1], dtype=torch.int16, device=logits.device)
        for piece, table in self._parts(logits):
            largest, index = piece.max(-1)
            if check is not None:
                check.add(largest)
            result = torch.where(index > 0, table[index], result)
        return result

    def present(self, logits: Tensor) -> Tensor:
        """Return which class of the label table is written, a bool tensor with one entry per class, see `LabelRule`."""
        numbers = torch.arange(len(self.values), device=logits.device)
        return torch.eq(self.classes(logits)[..., None], numbers)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return one probability per class of the label table.

        The probability of a label is that of its own network, times those with which all later networks find background; the
        networks are taken to be independent. The sum over all classes is 1.
        """
        result = logits.new_zeros((*logits.shape[:-1], len(self.values)), dtype=torch.float32)
        later = torch.ones_like(result[..., :1])
        for piece, table in reversed(list(self._parts(logits))):
            found = torch.softmax(piece.float(), -1)
            result[..., table[1:].long()] = found[..., 1:] * later
            later = later * found[..., :1]
        result[..., :1] = later
        return result

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the entropy over all classes `(*shape, 1)` by log k, see `LabelRule`."""
        return Argmax(self.values).entropy(probabilities)

    def classes_of_sums(self, sums: NDArray[Any], count: int) -> NDArray[Any]:
        """Return the classes with the largest mean probabilities of several models, see `LabelRule`."""
        return np.asarray(sums.argmax(-1))


def model_rule(saved: SavedModel, labels: Labels, temperatures: Sequence[float] = ()) -> LabelRule:
    """Return the rule for the outputs of a model folder.

    Args:
        saved: Settings of the folder.
        labels: Labels of the folder.
        temperatures: As for `label_rule`; parts have none.

    Returns:
        `PartsArgmax` for a folder of parts, else the rule of `label_rule`.

    Raises:
        DataError: A label of a part is not in the table.
        ModelError: A folder of parts has temperatures.
    """
    if not saved.parts:
        return label_rule(labels, temperatures)
    if temperatures:
        raise ModelError(
            f"{saved.name}: calibration: found {len(temperatures)} temperatures, expected none for a model of parts. Copy the model "
            "folder again, or predict with calibrate=false."
        )
    classes = {label.name: labels.names.index(label.name) for label in labels.foreground}
    for name in (name for part in saved.parts for name in part.labels):
        labels.value_of(name)
    return PartsArgmax(
        labels.to_values(np.arange(len(labels))),
        tuple((0, *(classes[name] for name in part.labels)) for part in saved.parts),
    )
