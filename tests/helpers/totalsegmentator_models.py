"""Trained folders with the layout of TotalSegmentator's weights, and its way from an image to a label map in plain steps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

import medseg
from medseg.interop.nnunet.model import import_nnunet
from tests.helpers.nnunet_models import architecture, configuration, dataset_of, plans_of, write_trained

NO_MIRRORING = "nnUNetTrainerNoMirroring"


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
) -> Path:
    """Write ``DatasetNNN_part`` of a small network with random weights and `count` labels; return the trained folder.

    The network finds the labels `only`, if there are any.
    """
    net = architecture(3, features=(4, 6))
    plans = plans_of({name: configuration([12, 12, 12], [size] * 3, net, ["CTNormalization"], [False])})
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


def _leave_labels(path: Path, labels: tuple[int, ...]) -> None:
    """Change the last layer of a checkpoint so that no other labels than these are found."""
    checkpoint = torch.load(path, weights_only=False)
    weights = checkpoint["network_weights"]
    bias = weights[max(name for name in weights if "seg_layers" in name and name.endswith("bias"))]
    others = [label for label in range(1, len(bias)) if label not in labels]
    bias[others] = -1e6
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
        import_nnunet(part, model, orientation="RAS")
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
