"""Training patches with the settings of most tests as defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.patches.augment import augment
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.extraction import Patch, PatchReader
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.sampling import PatchSampler
from medseg.data.settings import Augmentation

NO_AUGMENTATION = {
    f"{name}_p": 0.0
    for name in (
        "rotate",
        "scale",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "gamma",
        "gamma_inverted",
    )
}
"""Settings of `Augmentation` with which nothing but mirroring is applied."""


def patch_dataset(
    cases: Sequence[StoredCase],
    size: tuple[int, ...],
    *,
    batch_size: int = 2,
    foreground: float = 0.33,
    length: int = 24,
    seed: int = 7,
    stream: str = "train",
    **options: Any,
) -> PatchDataset:
    """Return a dataset of patches with its sampler; `options` are those of `PatchDataset`."""
    sampler = PatchSampler(cases, size, batch_size, foreground)
    return PatchDataset(sampler, length=length, seed=seed, stream=stream, **options)


def read_patch(
    case: Any, centre: Sequence[int], size: tuple[int, ...], matrix: NDArray[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Return image and label of a patch of any object with the arrays `image` and `label`."""
    patch = PatchReader(size).read(case, np.array(centre), matrix).patch()
    return patch.image, patch.label


def augmented(
    image: Tensor, label: Tensor, settings: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return image and label of an augmented patch."""
    patch = augment(Patch(image, label), settings, rng)
    return patch.image, patch.label
