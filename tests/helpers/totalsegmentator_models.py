"""Trained folders with the layout of TotalSegmentator's weights, and its way from an image to a label map in plain steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

import medseg
from tests.helpers.nnunet_models import (
    architecture,
    configuration,
    dataset_of,
    import_without_reference,
    plans_of,
    write_trained,
)

NO_MIRRORING = "nnUNetTrainerNoMirroring"
LONG = "nnUNetTrainer_4000epochs_NoMirroring"
PARTS_OF_TOTAL = {291: 24, 292: 26, 293: 18, 294: 23, 295: 26}
"""Number of labels by data set."""
GOLDEN = Path(__file__).parents[1] / "interop" / "totalsegmentator" / "golden"
GOLDEN_TASKS = ("total", "liver_vessels")
"""The tasks with golden label maps: five networks, and a network for the box around an organ that a coarse one finds."""
LIVER = 5


def write_dataset(
    root: Path,
    number: int,
    count: int,
    *,
    size: float = 1.5,
    mean: float = 40.0,
    trainer: str = NO_MIRRORING,
    name: str = "3d_fullres",
    only: tuple[int, ...] = (),
    mirror_axes: tuple[int, ...] | None = None,
    patch: tuple[int, int, int] = (12, 12, 12),
    sizes: tuple[float, float, float] | None = None,
) -> Path:
    """Write ``DatasetNNN_part`` of a small network with random weights and `count` labels; return the trained folder.

    The network finds the labels `only`, if there are any. `patch` and `sizes`, by default `size` along all axes, are in the order of
    the plans.
    """
    net = architecture(3, features=(4, 6))
    spacing = list(sizes or (size,) * 3)
    plans = plans_of({name: configuration(list(patch), spacing, net, ["CTNormalization"], [False])})
    plans["dataset_name"] = f"Dataset{number:03d}_part"
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = mean
    labels = {"background": 0, **{f"structure {i}": i for i in range(1, count + 1)}}
    folder = write_trained(
        root / f"Dataset{number:03d}_part",
        name,
        plans,
        dataset_of(labels=labels),
        trainer=trainer,
        seed=number,
        background=0.7,
        mirror_axes=mirror_axes,
    )
    if only:
        _leave_labels(folder / "fold_0" / "checkpoint_final.pth", only)
    return folder


def _leave_labels(path: Path, labels: tuple[int, ...], others: float = -1e6) -> None:
    """Change the last layer of a checkpoint so that no other labels than these are found; `others` is the bias of those."""
    checkpoint = torch.load(path, weights_only=False)
    weights = checkpoint["network_weights"]
    bias = weights[max(name for name in weights if "seg_layers" in name and name.endswith("bias"))]
    absent = [label for label in range(1, len(bias)) if label not in labels]
    bias[absent] = others
    torch.save(checkpoint, path)


def write_ct(
    path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], axcodes: str, zeros: int = 4
) -> Path:
    """Write whole numbers with structures of some millimetres, and zeros on two sides: on one of them, `zeros` slices."""
    rng = np.random.default_rng(3)
    grids = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    wave = sum(np.sin(g / (3.0 + a)) for a, g in enumerate(grids))
    data = np.asarray(120 * wave + 20 * rng.normal(size=shape) + 30).astype(np.int16)
    data[:zeros] = 0
    data[:, :, -3:] = 0
    image = nib.Nifti1Image(data, np.diag([*spacing, 1.0]))
    nib.save(image.as_reoriented(axcodes2ornt(tuple(axcodes))), path)
    return path


def plain_label_map(
    image: Path,
    parts: list[Path],
    scratch: Path,
    *,
    size: float,
    order: int,
    overlap: float = 0.2,
) -> np.ndarray:
    """Return the label map of a task in plain steps, each network on its own; labels of later parts follow earlier ones."""
    scratch.mkdir(exist_ok=True)
    original = nib.load(image)
    canonical = nib.as_closest_canonical(original)
    data = np.asanyarray(canonical.dataobj).astype(np.float64)
    zoom = np.array(canonical.header.get_zooms()) / size
    small = ndimage.zoom(data, zoom, order=order, mode="nearest").astype(np.int32)
    affine = canonical.affine.copy()
    affine[:3, :3] /= zoom
    nib.save(nib.Nifti1Image(small, affine), scratch / "small.nii.gz")
    combined, before = np.zeros(small.shape, np.uint8), 0
    for number, part in enumerate(parts):
        model = scratch / f"part {number}"
        import_without_reference(part, model, orientation="RAS")
        predictor = medseg.load(
            model, device="cpu", precision="float32", overlap=overlap, mirror_axes=[], skip_empty=False
        )
        own = predictor(scratch / "small.nii.gz").data[0]
        combined[own > 0] = own[own > 0] + before
        before += len(predictor.labels.foreground)
    back = np.array(data.shape) / np.array(combined.shape)
    large = ndimage.zoom(combined, back, order=0, mode="nearest")
    turn = ornt_transform(axcodes2ornt("RAS"), io_orientation(original.affine))
    turned = nib.Nifti1Image(large, canonical.affine).as_reoriented(turn)
    return np.asanyarray(turned.dataobj)


def write_golden_models(root: Path) -> str:
    """Write the networks of `GOLDEN_TASKS` with weights from whole numbers, the same everywhere; return a hash of the weights.

    The networks of total have TotalSegmentator's numbers of labels, and statistics of intensities of their own. Each finds three
    of its labels, the first and the last among them; the network for 6 mm finds the liver alone. With more labels, nnU-Net's
    sums in float16 are equal for several labels in too many voxels.
    """
    folders = {
        write_dataset(root, number, count, mean=20.0 + 15 * place, patch=(24, 20, 28)): (1, 5 + place, count)
        for place, (number, count) in enumerate(PARTS_OF_TOTAL.items())
    }
    folders[write_dataset(root, 298, 117, size=6, trainer=LONG)] = (LIVER,)
    last = write_dataset(root, 8, 2, trainer="nnUNetTrainer", patch=(12, 24, 28), sizes=(2.5, 1.2, 1.2))
    folders[last] = (1, 2)
    found = hashlib.sha256()
    for seed, (folder, labels) in enumerate(folders.items()):
        path = folder / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        for values, tensor in _whole_number_weights(checkpoint["network_weights"], seed):
            tensor.copy_(torch.from_numpy(values))
            found.update(values.tobytes())
        torch.save(checkpoint, path)
        _leave_labels(path, labels, others=-100.0)
    return found.hexdigest()


def _whole_number_weights(
    weights: dict[str, torch.Tensor], seed: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield new values for each tensor; every label has the same mean logit, except for the background."""
    rng = np.random.default_rng(seed)
    done: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in done:  # nnU-Net lists some layers twice
            continue
        done.add(tensor.data_ptr())
        whole = rng.integers(-127, 128, tuple(tensor.shape))
        if "seg_layers" in name and name.endswith("weight"):
            channels = whole.shape[1]
            values = 3 * (whole * channels - whole.sum(1, keepdims=True)) / (127 * channels)
        elif "seg_layers" in name:
            values = np.where(np.arange(len(whole)) == 0, 1.5, 0.0)
        elif tensor.ndim > 1:
            values = whole / (127 * np.sqrt(whole[0].size))
        else:
            values = ("norm" in name and name.endswith("weight")) + 0.3 * whole / 127
        yield values.astype(np.float32), tensor


def label_map_hash(path: Path) -> str:
    """Return a hash of shape, affine and voxels of a label map."""
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    assert voxels.dtype == np.uint8
    parts = (np.array(image.shape, "<i8"), image.affine.astype("<f8"), voxels)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
