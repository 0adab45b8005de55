"""What datasets of many labels and many cases cost.

    python benchmarks/scale.py labels                 # former formulas against today's, in CPU seconds
    python benchmarks/scale.py preparation --cases 40 # time and disk per case, with 1 and 2 processes
    python benchmarks/scale.py worker --cases 300     # private memory of a process that cuts patches
    python benchmarks/scale.py formats                # types and files in which prepared images can be stored

The former formulas are the plain definitions, which work class by class; they are kept here as a yardstick.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.cases import Case
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.class_locations import locations_table
from medseg.data.patches.interpolation import interpolate_image, interpolate_labels, sampling_grid
from medseg.data.patches.patch_dataset import PatchDataset
from medseg.data.patches.prepare_cases import CaseStore
from medseg.data.patches.sampling import PatchSampler
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Augmentation
from medseg.labels.components import component_sizes, connected_components, keep_largest_components
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.builtin import SumOfLosses
from medseg.losses.dice_cross_entropy import DiceCrossEntropy
from medseg.losses.label_set_losses import LabelSetCrossEntropy, LabelSetDice

LABELS = 98
MANY_LABELS = 117  # those of TotalSegmentator
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


def labels_table() -> None:
    """Compare formulas that work class by class with those of medseg."""
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


def ct_phantom(folder: Path, number: int) -> None:
    """Write a CT of 160 x 160 x 120 voxels of 1.5 x 1.5 x 2 mm with 117 compact labels."""
    rng = np.random.default_rng(number)
    label = np.roll(organs(), rng.integers(0, 160, 3), axis=(0, 1, 2))[:, :, :120]
    image = (rng.normal(0, 30, label.shape) + (label.astype(np.int16) * 7) % 400 - 200 * (label == 0)).astype(
        np.int16
    )
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"image_{number:03}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"label_{number:03}.nii.gz")


@cache
def organs() -> NDArray[np.uint8]:
    """Return a label map of 117 labels with 160 x 160 x 160 voxels."""
    return label_map(MANY_LABELS, 160)


def preparation(count: int) -> None:
    """Prepare CT phantoms with one process and with two, alternating; each turn is a new program, as a command is."""
    settings = Preprocessing(
        spacing=(1.5, 1.5, 1.5),
        channels=(Normalization(method="ct", mean=100, std=150, low=-300, high=400),),
    )
    labels = Labels.from_names({f"label_{n}": n for n in range(1, MANY_LABELS + 1)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            ct_phantom(folder, number)
        cases = [
            Case(f"case_{n:03}", (folder / f"image_{n:03}.nii.gz",), folder / f"label_{n:03}.nii.gz")
            for n in range(count)
        ]
        print(f"{count} CT phantoms, {MANY_LABELS} labels, prepared to 160 x 160 x 160; per case")
        print(f"{'processes':>10}{'seconds':>10}{'CPU seconds':>13}{'MB on disk':>12}")
        for turn, workers in enumerate((1, 2, 2, 1)):
            store = CaseStore(folder / f"store_{turn}", settings, LabelSets.from_annotations(labels))
            began, used = time.perf_counter(), cpu_seconds()
            program = multiprocessing.get_context("spawn").Process(
                target=store.fill, args=(cases, CaseExecutor(workers))
            )
            program.start()
            program.join()
            if program.exitcode:
                raise SystemExit(f"the preparation with {workers} processes failed")
            wall, cpu = time.perf_counter() - began, cpu_seconds() - used
            size = sum(file.stat().st_size for file in store.folder.rglob("*"))
            print(
                f"{workers:10}{wall / count:10.2f}{cpu / count:13.2f}{size / count / 1e6:12.1f}", flush=True
            )
            shutil.rmtree(store.folder)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its ended processes."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class PrivateMemory(Dataset[float]):
    """Samples of two datasets one after the other; an item is the private memory of the process afterwards.

    Args:
        few: Patches of some cases.
        many: Patches of all cases.
    """

    def __init__(self, few: PatchDataset, many: PatchDataset) -> None:
        self._parts = (few, many)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> float:
        few, many = self._parts
        _ = few[index] if index < len(few) else many[index - len(few)]
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def worker_memory(count: int) -> None:
    """Read patches of prepared cases in a process of the loader; its memory may not grow with the number of cases."""
    label = label_map(MANY_LABELS, 96)
    table = locations_table(label)
    with tempfile.TemporaryDirectory() as name:
        cases = []
        for number in range(count):
            folder = Path(name) / f"case_{number}"
            folder.mkdir()
            image = np.random.default_rng(number).standard_normal((1, *label.shape)).astype(np.float32)
            np.save(folder / "image.npy", image)
            np.save(folder / "label.npy", label[None])
            np.save(folder / "locations.npy", table)
            cases.append(StoredCase(f"case_{number}", folder))
        few, many = (
            PatchDataset(
                PatchSampler(part, (64, 64, 64), 2, 0.33),
                length=repeats * len(part),
                seed=0,
                stream="train",
                augmentation=Augmentation(device="worker"),
            )
            for part, repeats in ((cases[:20], 15), (cases, 6))
        )
        found = [
            float(value) for value in DataLoader(PrivateMemory(few, many), batch_size=None, num_workers=1)
        ]
    first, last = found[len(few) - 1], found[-1]
    print(
        f"private memory of a worker: {first:.1f} MB after 20 cases, {last:.1f} MB after {count} ({last / first - 1:+.1%})"
    )


def formats() -> None:
    """Compare types and files of a prepared CT and a prepared MR by size, by the time of a patch, and by their error."""
    for name, image in prepared_images().items():
        print(
            f"{name}, {' x '.join(map(str, image.shape))} voxels; patches of 96 x 96 x 96 as float32, one core"
        )
        header = f"{'':24}{'MB':>7}{'patches/s':>11}{'uncached':>10}{'error':>10}{'float16 differs':>17}{'bfloat16 differs':>18}"
        print(header)
        with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
            for title, way in WAYS_TO_STORE.items():
                file = Path(folder) / "image"
                read = way.write(file, image)
                print(f"{title:24}" + format_row(file, image, read), flush=True)


def prepared_images() -> dict[str, NDArray[np.float32]]:
    """Return a resampled and normalised CT and MR with the noise and the tissues of real ones."""
    rng = np.random.default_rng(0)
    body = ndimage.zoom(rng.normal(0, 1, (12, 12, 12)), 16, order=3)
    ct = ndimage.zoom(
        np.round(np.where(body < -0.8, -1000, 60 * body + rng.normal(0, 20, body.shape))), 0.9, order=3
    )
    signal = np.where(body < -0.5, 0, np.exp(body) * 200 + rng.normal(0, 15, body.shape))
    mr = ndimage.zoom(np.round(np.maximum(signal, 0)), 0.9, order=3)
    return {
        "CT": ((np.clip(ct, -900, 400) - 40) / 120).astype(np.float32),
        "MR": ((mr - mr.mean()) / mr.std()).astype(np.float32),
    }


def format_row(file: Path, image: NDArray[np.float32], read: Callable[[Path], Callable[[Any], Any]]) -> str:
    """Return the cells of one way to store an image."""
    rng = np.random.default_rng(1)
    starts = rng.integers(0, np.array(image.shape) - 96, (30, 3))
    boxes = [tuple(slice(int(a), int(a) + 96) for a in start) for start in starts]
    opened = read(file)
    opened(boxes[0])
    began = time.process_time()
    for box in boxes:
        opened(box)
    warm = len(boxes) / (time.process_time() - began)
    began = time.perf_counter()
    for box in boxes[:8]:
        forget(file)
        read(file)(box)
    cold = 8 / (time.perf_counter() - began)
    stored = torch.from_numpy(np.ascontiguousarray(opened((slice(None),) * 3), np.float32))
    exact = torch.from_numpy(image)
    differs = [
        float((stored.to(kind) != exact.to(kind)).float().mean()) for kind in (torch.float16, torch.bfloat16)
    ]
    error = float((stored - exact).abs().max())
    size = file.stat().st_size / 1e6
    return f"{size:7.1f}{warm:11.1f}{cold:10.1f}{error:10.1e}{differs[0]:17.1%}{differs[1]:18.1%}"


def forget(file: Path) -> None:
    """Drop a file from the system's cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Storage:
    """A way to store an image: its type of numbers, and the codec of Blosc2; a plain ``.npy`` file without one."""

    dtype: str
    codec: str = ""

    def write(self, file: Path, image: NDArray[np.float32]) -> Callable[[Path], Callable[[Any], Any]]:
        """Write an image and return the function that opens such a file for reading boxes as float32."""
        scale = np.float32(np.abs(image).max() / 32767) if self.dtype == "int16" else None
        numbers = np.ascontiguousarray(image if scale is None else np.round(image / scale), self.dtype)
        file.unlink(missing_ok=True)
        if self.codec:
            import blosc2

            packing = {"codec": blosc2.Codec[self.codec], "clevel": 5, "nthreads": 1}
            chunks: dict[str, Any] = {"chunks": (64, 64, 64), "blocks": (32, 32, 32)}
            blosc2.asarray(numbers, urlpath=str(file), mode="w", cparams=packing, **chunks)
        else:
            with file.open("wb") as opened:
                np.save(opened, numbers)
        return partial(self._opened, scale=scale)

    def _opened(self, file: Path, scale: np.float32 | None) -> Callable[[Any], Any]:
        array: Any
        if self.codec:
            import blosc2

            array = blosc2.open(str(file), mode="r", dparams={"nthreads": 1})
        else:
            array = np.load(file, mmap_mode="r")
        if scale is None:
            return lambda box: array[box].astype(np.float32)
        return lambda box: array[box].astype(np.float32) * scale


WAYS_TO_STORE = {
    "float32 .npy": Storage("float32"),
    "float16 .npy": Storage("float16"),
    "int16 with scale .npy": Storage("int16"),
    "float32 Blosc2 LZ4": Storage("float32", "LZ4"),
    "float32 Blosc2 Zstd": Storage("float32", "ZSTD"),
    "float16 Blosc2 LZ4": Storage("float16", "LZ4"),
    "int16 Blosc2 LZ4": Storage("int16", "LZ4"),
    "int16 Blosc2 Zstd": Storage("int16", "ZSTD"),
}


def main() -> None:
    """Measure one part and print its table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("labels", "preparation", "worker", "formats"))
    parser.add_argument("--cases", type=int, default=40)
    options = parser.parse_args()
    if options.part == "labels":
        labels_table()
    elif options.part == "preparation":
        preparation(options.cases)
    elif options.part == "worker":
        worker_memory(options.cases)
    else:
        formats()


if __name__ == "__main__":
    main()
