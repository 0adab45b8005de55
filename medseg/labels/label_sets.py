"""What the whole numbers of a prepared label map stand for, where not every voxel is known.

Values 0 … K−1 are classes. A value K + i says "one of the classes of set i". Set 0 holds all classes: nobody looked at
such a voxel. A case whose annotators drew only some labels has its background stored as K + i with set i = background
and every label that was not drawn. Losses, validation and evaluation all follow from these sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels

AnnotatedLabels = tuple[str, ...]
"""Names of the labels that the annotators of a case drew."""


@dataclass(frozen=True)
class LabelSets:
    """The sets of classes that voxels of a dataset may be of.

    Attributes:
        labels: the classes, and what the network predicts.
        sets: rising class indices of each set; none where every voxel has its class.
    """

    labels: Labels
    sets: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_annotations(
        cls, labels: Labels, annotated: Mapping[str, AnnotatedLabels | None] | None = None
    ) -> LabelSets:
        """The sets of a dataset.

        Args:
            labels: its labels; an ignore value needs the set of all classes.
            annotated: case id → labels that were drawn; None, or a case that is not there, for all.

        Raises:
            DataError: an unknown label.
        """
        missing = {
            unannotated_classes(labels, names, f"case {case}") for case, names in (annotated or {}).items()
        }
        everything = tuple(range(len(labels)))
        partial = sorted({(0, *group) for group in missing if group} - {everything})
        needed = labels.ignore is not None or any(missing)
        return cls(labels, (everything, *partial) if needed else ())

    @property
    def num_values(self) -> int:
        """K and the number of sets: one more than the largest value of a prepared label map."""
        return len(self.labels) + len(self.sets)

    @property
    def is_fully_annotated(self) -> bool:
        """Whether every voxel has its class, and the network predicts classes."""
        return not self.sets and not self.labels.regions

    def background_value(self, annotated: AnnotatedLabels | None) -> int:
        """The value of the background voxels of a case in which these labels were drawn: 0 if it was all of them."""
        group = unannotated_classes(self.labels, annotated, "labels")
        return len(self.labels) + self.sets.index((0, *group)) if group else 0

    def possible(self) -> NDArray[np.bool_]:
        """Whether a voxel of a value may be of a class, `(num_values, K)`."""
        classes = len(self.labels)
        table = np.zeros((self.num_values, classes), bool)
        table[np.arange(classes), np.arange(classes)] = True
        for index, group in enumerate(self.sets, start=classes):
            table[index, list(group)] = True
        return table

    def certain(self) -> NDArray[np.bool_]:
        """Whether a voxel of a value is surely inside each of `labels.measured`, `(num_values, m)`."""
        outside = self.possible()[:, None] & ~self._members()
        return np.logical_not(outside.any(2))

    def known(self) -> NDArray[np.bool_]:
        """Whether a voxel of a value is surely inside or surely outside of `labels.measured`, `(num_values, m)`."""
        possible = self.possible()[:, None] & self._members()
        return self.certain() | np.logical_not(possible.any(2))

    def _members(self) -> NDArray[np.bool_]:
        """The classes of each region, or of each foreground label its own, `(m, K)`."""
        values = np.array(self.labels.values)
        return np.array([np.isin(values, one.values) for one in self.labels.evaluated], bool).reshape(
            -1, len(values)
        )


def unannotated_classes(labels: Labels, annotated: Sequence[str] | None, where: str) -> tuple[int, ...]:
    """Class indices of the foreground labels that were not drawn; none if `annotated` is None.

    Raises:
        DataError: an unknown name.
    """
    if annotated is None:
        return ()
    for name in annotated:
        if name not in labels.names:
            raise DataError(
                f"{where}: labels: unknown label {name!r}.{did_you_mean(name, labels.names)} Known: "
                f"{', '.join(labels.names)}. Correct the names of the labels that were drawn."
            )
    return tuple(index for index, name in enumerate(labels.names) if index and name not in annotated)
