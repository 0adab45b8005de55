"""Compare the time to augment a training patch in medseg and with the same transforms of MONAI.

    python benchmarks/augmentation.py

Patches of 96 x 96 x 96 voxels, image and label, are cut from one prepared case of 192 x 192 x 160 voxels on disk and augmented
with the same probabilities and ranges on one thread. Both implementations use different random numbers, so the mean over
many patches is compared. MONAI resamples rotated label maps by nearest neighbour, medseg class by class. The table is written
to docs/measurements.md.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements_page import machine, markdown, publish_section

from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.class_locations import locations_table
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.sampling import PatchSampler
from medseg.data.settings import Augmentation

SHAPE, PATCH, COUNT = (192, 192, 160), (96, 96, 96), 60


def main() -> None:
    """Measure both implementations and write the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        case = _case(Path(name))
        settings = Augmentation()
        patches = PatchDataset(
            PatchSampler([case], PATCH, batch_size=2),
            length=COUNT,
            seed=0,
            stream="train",
            augmentation=settings,
        )
        transform = monai_transforms(settings, PATCH)
        source = {"image": case.image, "label": case.label}
        ways: dict[str, Callable[[int], Any]] = {
            "medseg": lambda i: patches[i],
            "MONAI `Compose` of `Rand…d`": lambda i: transform(source),
        }
        times = {title: _milliseconds(way) for title, way in ways.items()}
    fastest = min(times.values())
    rows = [[title, f"{value:.0f}", f"{value / fastest:.1f}"] for title, value in times.items()]
    publish_section(
        "augmentation", f"{machine()}.\n\n{markdown(['implementation', 'ms per patch', 'ratio'], rows)}"
    )


def _case(folder: Path) -> StoredCase:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (1, *SHAPE)).astype(np.float32)
    label = np.zeros((1, *SHAPE), np.uint8)
    label[0, 60:120, 60:120, 60:100] = 1
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    np.save(folder / "locations.npy", locations_table(label[0]))
    (folder / "grid.json").write_text(json.dumps({"spacing": [1, 1, 1], "shape": SHAPE, "format": 1}))
    return StoredCase("phantom", folder)


def monai_transforms(s: Augmentation, size: tuple[int, ...]) -> Callable[[Any], Any]:
    """Return the same augmentation as MONAI transforms, for dictionaries with `image` and `label` `(c, *spatial)`."""
    from monai import transforms as t

    both, angle = ["image", "label"], math.radians(s.rotate_degrees)
    zoom = (s.scale[0] - 1, s.scale[1] - 1)
    turned: dict[str, Any] = {"mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    chain: Any = t.Compose(
        [
            t.RandSpatialCropd(both, size, random_size=False),
            t.RandAffined(both, prob=s.rotate_p, rotate_range=(angle,) * 3, **turned),
            t.RandAffined(both, prob=s.scale_p, scale_range=(zoom,) * 3, **turned),
            t.RandGaussianNoised("image", prob=s.noise_p, std=s.noise_std[1]),
            t.RandGaussianSmoothd("image", prob=s.blur_p / 2, **dict.fromkeys(_SIGMAS, s.blur_sigma)),
            t.RandScaleIntensityd("image", factors=0.25, prob=s.brightness_p),
            t.RandAdjustContrastd("image", prob=s.contrast_p, gamma=s.contrast),
            t.RandSimulateLowResolutiond("image", prob=s.low_resolution_p / 2, zoom_range=s.low_resolution),
            t.RandAdjustContrastd(
                "image", prob=s.gamma_inverted_p, gamma=s.gamma, invert_image=True, retain_stats=True
            ),
            t.RandAdjustContrastd("image", prob=s.gamma_p, gamma=s.gamma, retain_stats=True),
            *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )
    chain.set_random_state(seed=0)
    result: Callable[[Any], Any] = chain
    return result


_SIGMAS = ("sigma_x", "sigma_y", "sigma_z")


def _milliseconds(way: Callable[[int], Any]) -> float:
    way(0)
    began = time.perf_counter()
    for index in range(COUNT):
        way(index)
    return (time.perf_counter() - began) / COUNT * 1000


if __name__ == "__main__":
    main()
