"""Label sets: which classes each voxel of a partially annotated label map may belong to.

In a prepared label map, values 0 … K−1 are classes. A value K + i means "one of the classes of set i". Set 0 holds all
classes and marks voxels that were not annotated. If only some labels were annotated in a case, its background has the
value K + i of the set that holds the background and every label that was not annotated. Losses, validation and
evaluation follow from these sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels

AnnotatedLabels = tuple[str, ...]
"""Names of the labels that were annotated in a case."""


@dataclass(frozen=True)
class LabelSets:
    """The sets of classes that voxels of a dataset may belong to.

    Attributes:
        labels: The labels of the dataset, and what the network predicts.
        sets: Class indices of each set, ascending; empty if every voxel has a class.

    Examples:
        >>> labels = Labels.from_names({"liver": 1, "spleen": 2})
        >>> label_sets = LabelSets.from_annotations(labels, {"case_1": ("liver",)})
        >>> label_sets.sets
        ((0, 1, 2), (0, 2))
        >>> label_sets.background_value(("liver",))  # background or spleen
        4
    """

    labels: Labels
    sets: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_annotations(
        cls, labels: Labels, annotated: Mapping[str, AnnotatedLabels | None] | None = None
    ) -> LabelSets:
        """Create the label sets of a dataset.

        Args:
            labels: Labels of the dataset; an ignore value requires the set of all classes.
            annotated: Annotated labels by case id. None, or a missing case, means all labels.

        Returns:
            The label sets; without sets if every voxel has a class.

        Raises:
            DataError: A label is unknown.
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
        """The number of values of a prepared label map: K plus the number of sets."""
        return len(self.labels) + len(self.sets)

    @property
    def is_fully_annotated(self) -> bool:
        """Whether every voxel has a class and the network predicts classes."""
        return not self.sets and not self.labels.regions

    def background_value(self, annotated: AnnotatedLabels | None) -> int:
        """Return the value that encodes the background of a case; 0 if all labels were annotated.

        Args:
            annotated: Names of the annotated labels; None for all.

        Returns:
            A value from 0 to ``num_values - 1``.

        Raises:
            DataError: A name is unknown.
        """
        group = unannotated_classes(self.labels, annotated, "labels")
        return len(self.labels) + self.sets.index((0, *group)) if group else 0

    def possible(self) -> NDArray[np.bool_]:
        """Return whether a voxel with each value may belong to each class, `(num_values, K)`."""
        classes = len(self.labels)
        table = np.zeros((self.num_values, classes), bool)
        table[np.arange(classes), np.arange(classes)] = True
        for index, group in enumerate(self.sets, start=classes):
            table[index, list(group)] = True
        return table

    def certain(self) -> NDArray[np.bool_]:
        """Return whether a voxel with each value certainly belongs to each of `labels.evaluated`, `(num_values, m)`."""
        return np.logical_not(_meet(self.possible(), ~self._members()))

    def known(self) -> NDArray[np.bool_]:
        """Return whether it is known if a voxel with each value belongs to each of `labels.evaluated`.

        Returns:
            Table `(num_values, m)`, true where a voxel is certainly inside or certainly outside.
        """
        return self.certain() | np.logical_not(_meet(self.possible(), self._members()))

    def _members(self) -> NDArray[np.bool_]:
        """Return the classes of each evaluated region, or of each foreground label, `(m, K)`."""
        values = np.array(self.labels.values)
        return np.array([np.isin(values, one.values) for one in self.labels.evaluated], bool).reshape(
            -1, len(values)
        )


def _meet(sets: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether each of the sets `(a, K)` shares a class with each of the others `(b, K)`, as table `(a, b)`."""
    # A product of matrices counts the shared classes, exactly below 2^24; a table (a, b, K) would be huge for many labels.
    return sets.astype(np.float32) @ others.T.astype(np.float32) > 0


def unannotated_classes(labels: Labels, annotated: Sequence[str] | None, where: str) -> tuple[int, ...]:
    """Return the class indices of the foreground labels that were not annotated.

    Args:
        labels: Labels of the dataset.
        annotated: Names of the annotated labels; None for all.
        where: Start of the message.

    Returns:
        Class indices in ascending order; empty if all labels were annotated.

    Raises:
        DataError: A name is unknown.
    """
    if annotated is None:
        return ()
    for name in annotated:
        if name not in labels.names:
            raise DataError(
                f"{where}: labels: unknown label {name!r}.{did_you_mean(name, labels.names)} Known: "
                f"{', '.join(labels.names)}. Correct the names of the annotated labels."
            )
    return tuple(index for index, name in enumerate(labels.names) if index and name not in annotated)
