"""What a dataset of a hundred labels costs: former formulas against today's, in one run.

    python benchmarks/scale.py

Prints a table of CPU seconds. The former formulas are the plain definitions, which work class by class; they
are kept here as a yardstick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medseg.data.patches.class_locations import locations_table
from medseg.data.patches.interpolation import interpolate_image, interpolate_labels, sampling_grid
from medseg.labels.components import component_sizes, connected_components, keep_largest_components
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.builtin import SumOfLosses
from medseg.losses.dice_cross_entropy import DiceCrossEntropy
from medseg.losses.label_set_losses import LabelSetCrossEntropy, LabelSetDice

LABELS = 98
EDGE = 96


def label_map(labels: int = LABELS, edge: int = EDGE) -> NDArray[np.uint8]:
    """Return a label map of compact organs: each voxel belongs to the nearest of some points, or to the background."""
    rng = np.random.default_rng(0)
    voxels = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = KDTree(rng.uniform(0, edge, (labels, 3))).query(voxels)[1].reshape(edge, edge, edge) + 1
    nearest[ndimage.zoom(rng.random((6, 6, 6)), edge / 6, order=1) < 0.5] = 0
    return np.asarray(nearest, np.uint8)


def patch_class_by_class(label: NDArray[np.uint8], grid: torch.Tensor) -> torch.Tensor:
    """Interpolate the indicator of every label by itself."""
    values = torch.from_numpy(np.flatnonzero(np.bincount(label.ravel())[1:]) + 1)
    indicators = torch.from_numpy(label.astype(np.int32)) == values.view(-1, 1, 1, 1)
    shares = interpolate_image(indicators.float(), grid)
    best = 1 - shares.sum(0)
    result = torch.zeros(best.shape, dtype=torch.int64)
    for value, share in zip(values, shares, strict=True):
        result = torch.where(share > best, value, result)
        best = torch.maximum(share, best)
    return result[None]


def locations_class_by_class(label: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Search the whole label map once per class."""
    rows = []
    for value in np.unique(label)[1:]:
        found = np.argwhere(label == value)
        if len(found) > 10_000:
            draw = np.random.default_rng(int(value))
            found = found[np.sort(draw.choice(len(found), 10_000, replace=False))]
        rows.append(np.column_stack([np.full(len(found), value), found]))
    return np.concatenate(rows).astype(np.int32)


def largest_class_by_class(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Search the components of every class in the whole label map."""
    result = label.copy()
    for value in range(1, LABELS + 1):
        components, count = connected_components(label == value)
        if count > 1:
            sizes = component_sizes(components, count)
            result[(components > 0) & (sizes[components] < sizes.max())] = 0
    return result


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result and its CPU seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    label = label_map()
    matrix = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0] * 0.9
    grid = sampling_grid(matrix, (56, 56, 56), label.shape, np.full(3, EDGE // 2))
    labels = Labels.from_names({f"label_{n}": n for n in range(1, LABELS + 1)})
    label_sets = LabelSets.from_annotations(labels)
    logits = torch.randn(1, LABELS + 1, 40, 40, 40, requires_grad=True)
    target = torch.randint(0, LABELS + 1, (1, 1, 40, 40, 40))
    terms = SumOfLosses(LabelSetDice(label_sets, batch=False), LabelSetCrossEntropy(label_sets, None))
    closed = DiceCrossEntropy(label_sets, batch=False, weights=None)
    rows: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (
            "label patch",
            lambda: patch_class_by_class(label[None], grid),
            lambda: interpolate_labels(label[None], grid),
        ),
        ("class locations", lambda: locations_class_by_class(label), lambda: locations_table(label)),
        (
            "largest components",
            lambda: largest_class_by_class(label),
            lambda: keep_largest_components(label, range(1, LABELS + 1)),
        ),
        (
            "loss and gradient",
            lambda: torch.autograd.grad(terms(logits, target), logits)[0],
            lambda: torch.autograd.grad(closed(logits, target), logits)[0],
        ),
    ]
    print(f"{LABELS} labels, {EDGE} x {EDGE} x {EDGE} voxels; CPU seconds")
    print(f"{'':20}{'before':>10}{'after':>10}{'ratio':>8}")
    for name, before, after in rows:
        (old, seconds), (new, fewer) = measured(before), measured(after)
        np.testing.assert_allclose(np.asarray(old), np.asarray(new), rtol=1e-3, atol=1e-7)
        print(f"{name:20}{seconds:10.3f}{fewer:10.3f}{seconds / fewer:8.1f}")


if __name__ == "__main__":
    main()
