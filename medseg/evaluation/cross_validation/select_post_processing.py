"""Selection of post-processing: whether keeping only the largest component helps on held-out cases.

This is nnU-Net's rule (Isensee et al. 2021). First, the largest component of all labels together is tried, and kept
if the mean Dice of the labels rises and the Dice of none falls. Then, if there are several labels, the largest
component of each label is tried in addition, and kept if the label's mean Dice rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.evaluation.label_maps.metrics import aligned_to, confusion_matrix, label_values
from medseg.evaluation.statistics.bootstrap import mean_of_known
from medseg.evaluation.summary_json import finite_values
from medseg.labels.components import keep_largest_components
from medseg.labels.label_sets import AnnotatedLabels, unannotated_classes
from medseg.labels.label_table import Labels
from medseg.labels.overlap import dice_from_counts
from medseg.volumes.boxes import union_of_boxes
from medseg.volumes.volume import Volume

Array = NDArray[np.float64]
_MOST_SHOWN = 13  # trials in the text; the summary contains all
_UNCHANGED, _TOGETHER, _EACH, _BOTH = range(4)  # rows of the result of candidate_dice


@dataclass(frozen=True)
class Trial:
    """One correction that was tried.

    Attributes:
        what: The label reduced to its largest component, or None for all labels together.
        before: Mean Dice of each affected label without the correction, by name; NaN for a label that never occurs.
        after: The same with the correction.
        adopted: Whether the correction is kept.
    """

    what: str | None
    before: dict[str, float]
    after: dict[str, float]
    adopted: bool

    def __str__(self) -> str:
        before, after = (float(np.nanmean([*dice.values()])) for dice in (self.before, self.after))
        fallen = [name for name in self.before if self.after[name] < self.before[name]]
        falls = f"; {', '.join(fallen)} would fall" if self.what is None and fallen and after > before else ""
        outcome = "kept" if self.adopted else f"not kept{falls}"
        return (
            f"largest component of {self.what or 'all labels'}: Dice {before:.4f} -> {after:.4f}, {outcome}"
        )


@dataclass(frozen=True)
class PostProcessing:
    """The selected post-processing, named as in `PredictSettings`, and its effect.

    Attributes:
        keep_largest_foreground: Setting of prediction: keep the largest component of all labels together.
        keep_largest: Setting of prediction: labels that are reduced to their largest component.
        trials: All corrections that were tried, in order.
        before: Mean Dice of each label over the cases without corrections.
        after: The same with the selected corrections. It is slightly optimistic, because the corrections were
            selected on the same cases.
    """

    keep_largest_foreground: bool
    keep_largest: tuple[str, ...]
    trials: tuple[Trial, ...]
    before: dict[str, float]
    after: dict[str, float]

    @property
    def foreground_means(self) -> tuple[float, float]:
        """The mean of the labels' mean Dice, before and after."""
        means = mean_of_known(np.array([[*self.before.values()], [*self.after.values()]]))
        return float(means[0]), float(means[1])

    @property
    def helps(self) -> bool:
        """Whether any correction is kept."""
        return self.keep_largest_foreground or bool(self.keep_largest)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON; None replaces NaN."""
        before, after = self.foreground_means
        return {
            "keep_largest_foreground": self.keep_largest_foreground,
            "keep_largest": list(self.keep_largest),
            "foreground_mean_dice": finite_values({"before": before, "after": after}),
            "labels": _side_by_side(self.before, self.after),
            "tried": [
                {
                    "largest_component_of": trial.what or "all labels",
                    "adopted": trial.adopted,
                    "labels": _side_by_side(trial.before, trial.after),
                }
                for trial in self.trials
            ],
        }

    def __str__(self) -> str:
        before, after = self.foreground_means
        total = (
            f"foreground mean Dice {before:.4f} -> {after:.4f}"
            if self.helps
            else "no correction improves the Dice"
        )
        few = len(self.trials) <= _MOST_SHOWN
        shown = [trial for trial in self.trials if few or trial.adopted or trial.what is None]
        lines = [str(trial) for trial in shown]
        if len(shown) < len(self.trials):
            lines.append(f"largest component of {len(self.trials) - len(shown)} other labels: not kept")
        return "\n  ".join(["post-processing:", *lines, total])


def candidate_dice(
    prediction: Volume,
    reference: Volume,
    labels: Labels,
    *,
    where: str = "",
    annotated: AnnotatedLabels | None = None,
) -> Array:
    """Return the Dice of one case for every correction that `select_post_processing` may combine.

    Args:
        prediction: Label map as predicted.
        reference: Label map on the same grid, possibly in another orientation.
        labels: Labels of both.
        where: The case, for messages.
        annotated: Names of the labels annotated in the reference; None for all.

    Returns:
        `(4, m)` for the foreground labels or regions: without correction, largest component of all together, of each,
        and of each after all together. NaN for a label that is in neither map, or that includes an unannotated label.
        Regions overlap, so each is corrected by itself.

    Raises:
        DataError: As in `medseg.evaluate`.
    """
    predicted, expected, groups, unknown = _as_classes(prediction, reference, labels, where, annotated)
    together = keep_largest_components(predicted, range(1, len(labels)), together=True)

    def dice(counts: NDArray[np.int64]) -> Array:
        return np.where(unknown, np.nan, _dice(counts, groups))

    def each(classes: NDArray[Any], counts: NDArray[np.int64]) -> Array:
        if not labels.regions:  # labels do not overlap, so that all can be corrected at once
            kept = keep_largest_components(classes, range(1, len(labels)))
            return dice(_counts(kept, expected, len(labels)))
        boxes = ndimage.find_objects(classes, max_label=len(labels) - 1)
        result = dice(counts)
        for index, group in enumerate(groups):  # regions overlap: only the box of one changes at a time
            box = union_of_boxes([boxes[number - 1] for number in group], classes.shape)
            kept = keep_largest_components(classes[box], group, together=True)
            before, after = (_counts(one, expected[box], len(labels)) for one in (classes[box], kept))
            result[index] = dice(counts - before + after)[index]
        return result

    plain, joined = (_counts(one, expected, len(labels)) for one in (predicted, together))
    return np.stack([dice(plain), dice(joined), each(predicted, plain), each(together, joined)])


def label_dice(
    prediction: Volume,
    reference: Volume,
    labels: Labels,
    *,
    where: str = "",
    annotated: AnnotatedLabels | None = None,
) -> Array:
    """Return the Dice `(m,)` of one case for each foreground label or region; NaN and errors as in `candidate_dice`.

    Args:
        prediction: Label map as predicted.
        reference: Label map on the same grid, possibly in another orientation.
        labels: Labels of both.
        where: The case, for messages.
        annotated: Names of the labels annotated in the reference; None for all.

    Returns:
        `(m,)`.
    """
    predicted, expected, groups, unknown = _as_classes(prediction, reference, labels, where, annotated)
    return np.where(unknown, np.nan, _dice(_counts(predicted, expected, len(labels)), groups))


def _as_classes(
    prediction: Volume, reference: Volume, labels: Labels, where: str, annotated: AnnotatedLabels | None
) -> tuple[NDArray[Any], NDArray[Any], list[list[int]], NDArray[np.bool_]]:
    """Return classes of both maps on one grid, the classes of each label or region, and whether it cannot be evaluated."""
    aligned = aligned_to(prediction, reference, where=f"{where}: prediction")
    predicted = replace(labels, ignore=None).to_classes(label_values(aligned, where), where)
    expected = labels.to_classes(label_values(reference, where), where)
    groups = [[labels.values.index(value) for value in one.values] for one in labels.evaluated]
    missing = set(unannotated_classes(labels, annotated, where))
    return predicted, expected, groups, np.array([bool(missing & set(group)) for group in groups])


def _counts(classes: NDArray[Any], expected: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Return voxel counts `(k, k)` by predicted and reference class, without voxels that the reference ignores."""
    known = expected < num_classes
    if known.all():
        return confusion_matrix(classes, expected, num_classes)
    return confusion_matrix(classes[known], expected[known], num_classes)


def select_post_processing(dice: Array, names: Sequence[str]) -> PostProcessing:
    """Select the corrections that improve the mean Dice, by the rule in the module's docstring.

    Args:
        dice: `(cases, 4, labels)` as returned by `candidate_dice`.
        names: Names of the foreground labels or regions.

    Returns:
        The selected corrections, all trials, and the mean Dice before and after.
    """
    cases, variants, count = dice.shape
    flat = dice.reshape(cases, variants * count)
    means = mean_of_known(flat.T).reshape(variants, count)
    overall = mean_of_known(means)
    none_falls = not (means[_TOGETHER] < means[_UNCHANGED]).any()
    union = bool(overall[_TOGETHER] > overall[_UNCHANGED]) and none_falls
    base, each = (means[_TOGETHER], means[_BOTH]) if union else (means[_UNCHANGED], means[_EACH])
    chosen = each > base if count > 1 else np.zeros(count, bool)
    trials = [Trial(None, _named(names, means[_UNCHANGED]), _named(names, means[_TOGETHER]), union)]
    if count > 1:
        trials += [
            Trial(name, {name: float(base[i])}, {name: float(each[i])}, bool(chosen[i]))
            for i, name in enumerate(names)
            if np.isfinite(base[i])
        ]
    return PostProcessing(
        keep_largest_foreground=union,
        keep_largest=tuple(name for name, keeps in zip(names, chosen, strict=True) if keeps),
        trials=tuple(trials),
        before=_named(names, means[_UNCHANGED]),
        after=_named(names, np.where(chosen, each, base)),
    )


def _dice(counts: NDArray[np.int64], groups: Sequence[Sequence[int]]) -> Array:
    """Return the Dice of each union of classes, from voxel counts `(k, k)` by predicted and reference class."""
    shared = np.array([counts[np.ix_(group, group)].sum() for group in groups])
    predicted = np.array([counts[group].sum() for group in groups])
    expected = np.array([counts[:, group].sum() for group in groups])
    return dice_from_counts(shared, predicted, expected)


def _named(names: Sequence[str], values: Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _side_by_side(before: dict[str, float], after: dict[str, float]) -> dict[str, dict[str, float | None]]:
    return {name: finite_values({"before": before[name], "after": after[name]}) for name in before}
