"""A bounded sample of the logits of a case with their references, from which temperatures are fitted.

Most voxels of a scan are far from every label and trivially right. A uniform sample would hardly contain others, so the
voxels are divided into four strata, by two questions: is the voxel *near* foreground, and is the network *certain and right*
about it? From each stratum, a fixed number of voxels is taken at random without replacement. A voxel weighs as many voxels as
it stands for, the size of its stratum divided by the number taken, so that weighted sums are unbiased estimates of the
sums over the whole image (stratified sampling, Horvitz and Thompson 1952).

Each voxel has a pseudo-random key, a hash of its position and of the case's id, and the smallest keys of a stratum are
kept. The sample therefore depends neither on the bands in which an image is predicted nor on the order of its windows.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_label
from medseg.data.preprocessing.lazy_labels import LabelSlices
from medseg.data.preprocessing.prepare import Preprocessing, label_slices
from medseg.errors import DataError
from medseg.inference.sliding.labelling import label_rule
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.to_file_grid import split_slices
from medseg.labels.label_sets import unannotated_classes
from medseg.labels.label_table import Labels
from medseg.storage.atomic import replacing

NEAR = 3
"""Voxels of the network's grid around the reference foreground that count as near, besides predicted foreground."""
CERTAIN = 0.99
"""Probability of its decision from which the network counts as certain about a voxel."""
QUOTAS = (1024, 512, 256, 256)
"""Voxels per case near foreground that are uncertain or wrong, and that are certain and right; the same far from it."""


@dataclass(frozen=True)
class VoxelSample:
    """Voxels with logits and references.

    Attributes:
        logits: Logits `(n, k)` float32, before any calibration.
        reference: Class index of each voxel in the label table `(n,)`.
        weight: Number of voxels that each stands for `(n,)` float64.
        near: Whether each voxel is near foreground `(n,)`.
    """

    logits: NDArray[np.float32]
    reference: NDArray[np.int64]
    weight: NDArray[np.float64]
    near: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.logits)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a sample that `LogitSampler.write` wrote.

        Args:
            path: The file.

        Returns:
            The sample.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return cls(
                    file["logits"].astype(np.float32),
                    file["reference"].astype(np.int64),
                    file["weight"],
                    file["near"],
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path}: not a sample of logits ({error}), expected one. Remove the file and run the command again."
            ) from None

    @classmethod
    def joined(cls, samples: Sequence[Self]) -> Self:
        """Return several samples as one; there must be at least one."""
        return cls(
            *(
                np.concatenate([getattr(one, name) for one in samples])
                for name in ("logits", "reference", "weight", "near")
            )
        )

    def chosen(self, index: NDArray[np.bool_]) -> VoxelSample:
        """Return the voxels of a mask `(n,)`."""
        return VoxelSample(self.logits[index], self.reference[index], self.weight[index], self.near[index])


class LogitSampler:
    """A `LogitObserver` that draws a random sample of the logits of a case with a reference while the case is predicted.

    Nothing is sampled from a partially annotated case, whose background may hold other labels; and no voxel with the ignore
    value.

    Args:
        case: A case with a label map, which is read when the prediction begins.
        preprocessing: Preprocessing of the model, by which the reference comes onto the network's grid.
        labels: Labels that the network learned, and its regions if it predicts these.
    """

    def __init__(self, case: Case, preprocessing: Preprocessing, labels: Labels) -> None:
        self._case, self._preprocessing, self._labels = case, preprocessing, labels
        self._rule = label_rule(labels)
        self._seed = zlib.crc32(case.id.encode())
        self._usable = not unannotated_classes(labels, case.annotated, f"case {case.id}")
        self._members = torch.from_numpy(output_members(labels))
        self._reference: LabelSlices | None = None
        self._strata: list[_Stratum] = []

    def begin(self, prepared: PreparedPrediction) -> None:
        """Read the reference and forget what was sampled, see `LogitObserver`."""
        self._strata = [_Stratum(quota) for quota in QUOTAS]
        if self._reference is None and self._usable:
            assert prepared.geometry is not None
            label = read_case_label(self._case, self._labels, prepared.geometry.source)
            self._reference = label_slices(label, prepared.geometry, self._preprocessing)

    def see(self, logits: Tensor, first: int, columns: slice) -> None:
        """Sample some voxels, see `LogitObserver`."""
        if self._reference is None:
            return
        reference, near = self._references(first, first + len(logits), columns)
        width, depth = self._reference.shape[1:]
        done = 0
        for piece in split_slices(logits):
            part = slice(done, done + len(piece))
            z = torch.arange(first + done, first + done + len(piece))[:, None, None]
            index = (z * width + torch.arange(columns.start, columns.stop)[:, None]) * depth + torch.arange(
                depth
            )
            self._sample(piece.float().cpu(), reference[part], near[part], index)
            done += len(piece)

    def _references(self, first: int, last: int, columns: slice) -> tuple[Tensor, Tensor]:
        """Return the class indices of some slices, and whether each voxel is near reference foreground."""
        assert self._reference is not None
        low, high = max(0, first - NEAR), min(last + NEAR, self._reference.shape[0])
        classes = torch.from_numpy(self._reference.slices(low, high).astype(np.int64))
        foreground = self._members[classes.clamp(max=len(self._labels))][..., _foreground(self._labels)].any(
            -1
        )
        near = max_pool3d(foreground.float()[None], 2 * NEAR + 1, stride=1, padding=NEAR)[0] > 0
        wanted = slice(first - low, last - low)
        return classes[wanted, columns], near[wanted, columns]

    def _sample(self, logits: Tensor, reference: Tensor, near: Tensor, index: Tensor) -> None:
        """Sample voxels `(slices, columns, rest)` into their strata."""
        known = reference < len(self._labels)  # the next index is the ignore value
        logits, reference, near, index = (one[known] for one in (logits, reference, near, index))
        present, p = self._rule.present(logits), self._rule.probabilities(logits)
        right = (present == self._members[reference]).all(-1)
        certain = (torch.where(present, p, 1 - p) >= CERTAIN).all(-1)
        near = near | present[..., _foreground(self._labels)].any(-1)
        easy = right & certain
        keys = splitmix64(index, self._seed)
        for stratum, (is_near, is_easy) in zip(
            self._strata, ((True, False), (True, True), (False, False), (False, True)), strict=True
        ):
            stratum.add((near == is_near) & (easy == is_easy), keys, logits, reference)

    def write(self, path: Path) -> None:
        """Write the sample, which `VoxelSample.read` reads; a partially annotated case has an empty one.

        Args:
            path: File of the sample, ending with ``.npz``.

        Raises:
            DataError: The file cannot be written.
            DiskFullError: The disk is full.
        """
        sample = self.sample()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez(
                temporary,
                logits=sample.logits,
                reference=sample.reference.astype(np.uint16),
                weight=sample.weight,
                near=sample.near,
            )

    def sample(self) -> VoxelSample:
        """Return the sample of everything that was seen since the beginning."""
        outputs = self._labels.num_outputs
        parts = [one.voxels(outputs) for one in self._strata] or [_Stratum(0).voxels(outputs)]
        near = [np.full(len(logits), number < 2) for number, (logits, _, _) in enumerate(parts)]
        logits, reference, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        return VoxelSample(logits, reference, weight, np.concatenate(near))


class _Stratum:
    """The voxels with the smallest keys of a stratum.

    Args:
        quota: Number of voxels to keep.
    """

    def __init__(self, quota: int) -> None:
        self._quota, self._size = quota, 0
        self._kept: tuple[Tensor, ...] | None = None

    def add(self, chosen: Tensor, *columns: Tensor) -> None:
        """Add the voxels of a mask `(n,)`, given their keys and whatever is kept with them."""
        new = tuple(column[chosen] for column in columns)
        self._size += len(new[0])
        kept = new if self._kept is None else tuple(map(torch.cat, zip(self._kept, new, strict=True)))
        if len(kept[0]) > self._quota:
            order = kept[0].topk(self._quota, largest=False, sorted=True).indices
            kept = tuple(column[order] for column in kept)
        self._kept = kept

    def voxels(self, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
        """Return logits, references and weights, in the order of the keys."""
        if self._kept is None or not len(self._kept[0]):
            return np.zeros((0, outputs), np.float32), np.zeros(0, np.int64), np.zeros(0)
        keys, logits, reference = self._kept
        order = keys.argsort()
        weight = np.full(len(keys), self._size / len(keys))
        return logits[order].numpy(), reference[order].numpy(), weight


def output_members(labels: Labels) -> NDArray[np.bool_]:
    """Return which outputs of a network each class index belongs to, `(K + 1, k)`; the last row, that of ignored voxels, is empty.

    Args:
        labels: Labels that the network learned, and its regions if it predicts these.

    Returns:
        A unit matrix, or one column per region.

    Examples:
        >>> labels = Labels.from_names({"background": 0, "edema": 1, "core": 2}).with_regions({"whole": [1, 2], "core": [2]})
        >>> output_members(labels).astype(int).tolist()
        [[0, 0], [1, 0], [1, 1], [0, 0]]
    """
    groups = [region.values for region in labels.regions] or [(value,) for value in labels.values]
    rows = [[value in group for group in groups] for value in labels.values]
    return np.array([*rows, [False] * len(groups)])


def _foreground(labels: Labels) -> slice:
    """Return the outputs that are foreground: all regions, or all classes but the first."""
    return slice(0 if labels.regions else 1, None)


def splitmix64(index: Tensor, seed: int) -> Tensor:
    """Return pseudo-random whole numbers for the positions of voxels, by the finaliser of SplitMix64 (Steele et al. 2014).

    Args:
        index: Positions, int64 of any shape.
        seed: Other seeds give other numbers.

    Returns:
        Numbers of the same shape, from -2⁶³ to 2⁶³ - 1.
    """
    mixed = (index + 1 + (seed << 32)) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return mixed ^ _shifted(mixed, 31)


def _signed(number: int) -> int:
    """Return 64 bits as a signed number, as which torch computes with them."""
    return number - (1 << 64) if number >> 63 else number


def _shifted(number: Tensor, by: int) -> Tensor:
    """Return 64 bits shifted to the right and filled with zeros."""
    return (number >> by) & ((1 << (64 - by)) - 1)
