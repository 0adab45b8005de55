"""Label maps and ids in rotated patches, against an interpolation of one class after another."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.data.patches.extraction import _source_box
from medseg.data.patches.interpolation import (
    interpolate_ids,
    interpolate_image,
    interpolate_labels,
    sampling_grid,
)
from medseg.data.patches.random_changes import draw_affine
from medseg.data.settings import Augmentation

ALWAYS = Augmentation(rotate_p=1, scale_p=1)


def class_by_class(label: np.ndarray, grid: torch.Tensor) -> torch.Tensor:
    """Interpolate the indicator of every label by itself; the largest share wins, background wins a tie."""
    values = [int(value) for value in np.unique(label) if value]
    shares = [
        interpolate_image(torch.from_numpy((label == value).astype(np.float32)), grid)[0] for value in values
    ]
    best = 1 - torch.stack(shares).sum(0) if shares else torch.ones(grid.shape[1:4])
    result = torch.zeros(grid.shape[1:4], dtype=torch.int64)
    for value, share in zip(values, shares, strict=True):
        result = torch.where(share > best, value, result)
        best = torch.maximum(share, best)
    return result[None]


def blobs(rng, shape, labels: int, dtype=np.uint8) -> np.ndarray:
    """Return a label map of smooth regions with up to `labels` labels."""
    steps = int(np.ceil((labels + 1) ** (1 / 3)))
    coarse = [rng.random([max(2, n // 6) for n in shape]) for _ in range(3)]
    fields = [ndimage.zoom(c, np.array(shape) / c.shape, order=1) for c in coarse]
    digits = [(field * steps).astype(int).clip(0, steps - 1) for field in fields]
    return ((digits[0] + steps * (digits[1] + steps * digits[2])) % (labels + 1)).astype(dtype)


def rotated(seed: int, size=(20, 24, 18)):
    """Return a random sampling grid and the shape of the box that it reads."""
    rng = np.random.default_rng(seed)
    matrix = draw_affine(ALWAYS, 3, rng)
    assert matrix is not None
    start, box = _source_box(np.zeros(3, np.intp), size, matrix)
    return rng, box, sampling_grid(matrix, size, box, -start)


@pytest.mark.parametrize("labels", [1, 2, 5, 15, 40, 117])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_equal_the_interpolation_of_one_class_after_another(labels, seed):
    rng, box, grid = rotated(seed)
    label = blobs(rng, box, labels)[None]
    assert torch.equal(interpolate_labels(label, grid), class_by_class(label, grid))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_of_every_stored_type_are_interpolated(dtype):
    rng, box, grid = rotated(3)
    label = blobs(rng, box, 7, dtype)[None] * dtype(36)
    found = interpolate_labels(label, grid)
    assert found.dtype == torch.int64
    assert torch.equal(found, class_by_class(label, grid))


def test_a_label_map_without_foreground_stays_background():
    _, box, grid = rotated(4)
    assert not interpolate_labels(np.zeros((1, *box), np.uint8), grid).any()


def test_ids_beyond_32_bits_are_kept():
    _, box, grid = rotated(5)
    assert (interpolate_ids(torch.full((1, *box), 2**40), grid) == 2**40).any()


class CountedWork(TorchDispatchMode):
    """Counts the numbers that torch computes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.numbers += sum(
            one.numel() for one in pytree.tree_leaves(result) if isinstance(one, torch.Tensor)
        )
        return result


def test_many_labels_are_about_as_much_work_as_few():
    work = []
    for labels in (2, 98):
        rng, box, grid = rotated(6, size=(24, 24, 24))
        with CountedWork() as counted:
            interpolate_labels(blobs(rng, box, labels)[None], grid)
        work.append(counted.numbers)
    assert 24**3 < work[0] < work[1] < 8 * work[0]  # one class after another takes 49 times as many
