"""Compare file formats for prepared cases by the time to read random patches.

    python benchmarks/patch_store.py

The same synthetic CT and label map of 256 x 256 x 192 voxels are stored in four formats. From each, the same 64 random
patches of 96 x 96 x 96 voxels are read, image and label, after one read that warms the file cache. The table is written to
docs/measurements.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
from measurements_page import machine, markdown, publish_section
from numpy.typing import NDArray

SHAPE, PATCH, READS = (256, 256, 192), (96, 96, 96), 64
MOST_SECONDS = 20
Read = Callable[[tuple[slice, ...]], NDArray[np.generic]]


def main() -> None:
    """Measure all formats and write the table."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 300, SHAPE).astype(np.float32)
    image[:40] = image[-40:] = -1000
    label = (image > 500).astype(np.uint8)
    starts = rng.integers(0, np.array(SHAPE) - np.array(PATCH), (READS, 3))
    boxes = [tuple(slice(int(s), int(s) + n) for s, n in zip(start, PATCH, strict=True)) for start in starts]
    with tempfile.TemporaryDirectory() as name:
        stores = _stores(Path(name), {"image": image, "label": label})
        times = {title: _seconds(reads, boxes) for title, (reads, _) in stores.items()}
        fastest = min(times.values())
        rows = [
            [title, f"{times[title] * 1000:.1f}", f"{times[title] / fastest:.1f}", f"{size / 1e6:.0f}"]
            for title, (_, size) in stores.items()
        ]
    publish_section(
        "patch-store", f"{machine()}.\n\n{markdown(['store', 'ms per patch', 'ratio', 'MB'], rows)}"
    )


def _stores(folder: Path, arrays: dict[str, NDArray[np.generic]]) -> dict[str, tuple[list[Read], int]]:
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array)
        np.savez_compressed(folder / f"{key}.npz", array)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{key}.nii.gz")
        blosc2.asarray(
            array,
            urlpath=str(folder / f"{key}.b2nd"),
            mode="w",
            chunks=PATCH,
            blocks=(32, 32, 32),
            cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5},
        )

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in folder.glob(pattern))

    def npy(key: str) -> Read:
        mapped = np.load(folder / f"{key}.npy", mmap_mode="r")
        return lambda box: np.array(mapped[box])

    def b2nd(key: str) -> Read:
        mapped = blosc2.open(str(folder / f"{key}.b2nd"), mode="r", mmap_mode="r")
        return lambda box: np.asarray(mapped[box])

    def npz(key: str) -> Read:
        return lambda box: np.asarray(np.load(folder / f"{key}.npz")["arr_0"][box])

    def nifti(key: str) -> Read:
        return lambda box: np.asarray(nib.load(folder / f"{key}.nii.gz").dataobj)[box]

    ways = [
        ("`.npy`, memory-mapped (medseg)", npy, "*.npy"),
        ("Blosc2, LZ4HC, memory-mapped", b2nd, "*.b2nd"),
        ("`.npz`, deflate", npz, "*.npz"),
        ("`.nii.gz`", nifti, "*.nii.gz"),
    ]
    return {title: ([opened(key) for key in arrays], size(pattern)) for title, opened, pattern in ways}


def _seconds(reads: list[Read], boxes: list[tuple[slice, ...]]) -> float:
    """Return the seconds per patch, image and label; slow formats are measured on fewer patches."""
    for read in reads:
        read(boxes[0])
    began, done = time.perf_counter(), 0
    for box in boxes:
        for read in reads:
            read(box)
        done += 1
        if time.perf_counter() - began > MOST_SECONDS:
            break
    return (time.perf_counter() - began) / done


if __name__ == "__main__":
    main()
