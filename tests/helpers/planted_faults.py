"""A small dataset without faults, and the same dataset with one planted fault per case."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (24, 22, 20)
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])
CASES = 40
LABELS = {"background": 0, "liver": 1, "tumour": 2}


@dataclass(frozen=True)
class Planted:
    """A fault and what a check should say about it: code, file, field, and parts of the other texts."""

    code: str
    file: str
    field: str
    found: str
    expected: str
    remedy: str


def name(number: int) -> str:
    return f"case_{number:03d}"


def image_file(number: int, channel: int = 0) -> str:
    return f"imagesTr/{name(number)}_{channel:04d}.nii.gz"


def label_file(number: int) -> str:
    return f"labelsTr/{name(number)}.nii.gz"


def arrays(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CT with air around a body, PET, and a label map of a liver with a tumour."""
    rng = np.random.default_rng(number)
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    centre = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3)
    depth = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    label = np.zeros(SHAPE, np.uint8)
    label[depth < 7] = 1
    label[depth < 3] = 2
    ct = np.where(depth < 9, 40, -1000) + 60 * (label == 1) + rng.normal(0, 10, SHAPE)
    pet = 3 + 5 * (label > 0) + 10 * (label == 2) + rng.uniform(0, 1, SHAPE)
    return ct.astype(np.int16), pet.astype(np.float32), label


def save(path: Path, data: Any, affine: Any = AFFINE, **codes: int) -> None:
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, codes.get("qform", 1))
    image.set_sform(affine, codes.get("sform", 1))
    nib.save(image, path)


def write_clean(root: Path, cases: int = CASES) -> Path:
    """Write the dataset without faults, with a file of splits."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        ct, pet, label = arrays(number)
        save(root / image_file(number, 0), ct)
        save(root / image_file(number, 1), pet)
        save(root / label_file(number), label)
    training = [
        {"image": [image_file(number, 0), image_file(number, 1)], "label": label_file(number)}
        for number in range(cases)
    ]
    describe(root, training=training, numTraining=cases, labels=LABELS)
    ids = [name(number) for number in range(cases)]
    split = {"train": ids[: cases // 2], "val": ids[cases // 2 :]}
    (root / "splits_final.json").write_text(json.dumps([split]))
    return root


def describe(root: Path, **values: Any) -> None:
    """Change keys of dataset.json."""
    path = root / "dataset.json"
    known = json.loads(path.read_text()) if path.exists() else {"channel_names": {"0": "CT", "1": "PET"}}
    path.write_text(json.dumps(known | values))


def plant(root: Path) -> list[Planted]:
    """Plant one fault in each of the first cases of a clean dataset."""
    return [*_files(root), *_headers(root), *_grids(root), *_intensities(root), *_labels(root), *_lists(root)]


def _files(root: Path) -> list[Planted]:
    (root / image_file(1)).unlink()
    (root / label_file(2)).unlink()
    (root / image_file(3)).write_bytes(b"")
    (root / image_file(4)).write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    (root / label_file(5)).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.write(root / image_file(6), "image.nii.gz")
    shutil.move(root / "a.zip", root / image_file(6))
    whole = (root / image_file(7)).read_bytes()
    (root / image_file(7)).write_bytes(whole[: len(whole) // 2])
    (root / image_file(8, 1)).write_bytes(gzip.decompress((root / image_file(8, 1)).read_bytes()))
    return [
        Planted("IMAGE_MISSING", image_file(1), "file", "no such file", "an image file", "Restore the image"),
        Planted(
            "LABEL_MISSING", label_file(2), "file", "no such file", "a label map", "Restore the label map"
        ),
        Planted("FILE_EMPTY", image_file(3), "content", "0 bytes", "image file", "again"),
        Planted(
            "FILE_IS_WEB_PAGE",
            image_file(4),
            "content",
            "an HTML page",
            "image file",
            "download the file again",
        ),
        Planted(
            "FILE_IS_GIT_LFS_POINTER",
            label_file(5),
            "content",
            "a Git LFS pointer",
            "image file",
            "git lfs pull",
        ),
        Planted("FILE_IS_ARCHIVE", image_file(6), "content", "a zip archive", "image file", "Unpack it"),
        Planted(
            "FILE_DAMAGED",
            image_file(7),
            "voxels",
            " of 21120 bytes",
            "(24, 22, 20) voxels of int16",
            "Copy the file again",
        ),
        Planted(
            "NAME_DIFFERS_FROM_CONTENT",
            image_file(8, 1),
            "content",
            "no gzip data",
            "fits the content",
            "Rename it",
        ),
    ]


def patch_header(path: Path, **fields: Any) -> None:
    """Set header fields of a file; a list sets the first elements."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in fields.items():
        if isinstance(value, list):
            header[key][: len(value)] = value
        else:
            header[key] = value
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))


def _headers(root: Path) -> list[Planted]:
    patch_header(root / image_file(9), datatype=9999)
    patch_header(root / image_file(10), qform_code=0, sform_code=0)
    patch_header(root / image_file(11), qoffset_x=30.0)
    patch_header(root / image_file(12), qform_code=0, pixdim=[1, 1, 1, 1])
    patch_header(root / image_file(13), qform_code=1, srow_x=[1.5, 0, 0, 0])
    for file in (image_file(14), image_file(14, 1), label_file(14)):
        data = np.asarray(nib.load(root / file).dataobj)
        save(root / file, data, AFFINE @ np.diag([1000, 1000, 1000, 1]))
    choose = "--orientation-from"
    return [
        Planted("HEADER_INVALID", image_file(9), "datatype", "9999", "2 (uint8)", "convert it"),
        Planted("ORIENTATION_UNKNOWN", image_file(10), "qform_code and sform_code", "0 and 0", "a code above 0", choose),
        Planted("QFORM_SFORM_DIFFER", image_file(11), "sform and qform", "30 mm apart", "same place", choose),
        Planted("PIXDIM_DIFFERS", image_file(12), "voxel size", "1x1x1 in pixdim and 1.5x1.5x2", "same voxel sizes", choose),
        Planted("QFORM_SFORM_AXES_DIFFER", image_file(13), "sform and qform", "RPS and LPS", "the same", choose),
        *(
            Planted("VOXEL_SIZE_IMPLAUSIBLE", file, "voxel size", "1500x1500x2000 mm", "at most 100 mm", "units")
            for file in (image_file(14), image_file(14, 1), label_file(14))
        ),
        Planted("SPACING_OUTLIER", image_file(14), "voxel size", "1500x1500x2000 mm", "1.5x1.5x2 mm", "Check the header"),
        Planted("SHAPE_OUTLIER", image_file(14), "field of view", "36000x33000x40000 mm", "36x33x40 mm", "part of the body"),
    ]  # fmt: skip


def _grids(root: Path) -> list[Planted]:
    shifted = AFFINE.copy()
    shifted[2, 3] = 12.0
    save(root / image_file(15, 1), arrays(15)[1][:, :, :-3])
    save(root / image_file(16, 1), arrays(16)[1], shifted)
    save(root / label_file(17), arrays(17)[2][:-2])
    save(root / label_file(18), arrays(18)[2], shifted)
    return [
        Planted(
            "SHAPE_CHANNEL_DIFFERS",
            image_file(15, 1),
            "shape",
            "24x22x17 voxels",
            "24x22x20 voxels",
            "Resample",
        ),
        Planted(
            "GRID_CHANNEL_DIFFERS",
            image_file(16, 1),
            "affine",
            "12 mm apart",
            "first voxel at (0, 0, 0)",
            "Resample",
        ),
        Planted(
            "SHAPE_LABEL_DIFFERS", label_file(17), "shape", "22x22x20 voxels", "24x22x20 voxels", "resample"
        ),
        Planted(
            "GRID_LABEL_DIFFERS",
            label_file(18),
            "affine",
            "12 mm apart",
            "first voxel at (0, 0, 0)",
            "--repair",
        ),
    ]


def _intensities(root: Path) -> list[Planted]:
    pet = arrays(19)[1]
    pet[3, 4, 5] = np.nan
    save(root / image_file(19, 1), pet)
    save(root / image_file(20, 1), np.full(SHAPE, 7, np.float32))
    save(root / image_file(21), arrays(21)[0] + 1024)
    save(root / image_file(22, 1), arrays(22)[1] * 1000)
    ct, pet, label = arrays(23)
    for file, data in ((image_file(23), ct), (image_file(23, 1), pet), (label_file(23), label)):
        save(root / file, data, AFFINE @ np.diag([1, 1, 6, 1]))
    return [
        Planted("IMAGE_NOT_FINITE", image_file(19, 1), "voxels", "1 voxel, the first at (3, 4, 5)", "finite", "Replace"),
        Planted("IMAGE_CONSTANT", image_file(20, 1), "voxels", "the value 7 everywhere", "contrast", "leave the case out"),
        Planted("CT_WITHOUT_AIR", image_file(21), "channel CT", " to ", "-1000 HU", "subtract the offset"),
        Planted("INTENSITY_OUTLIER", image_file(22), "channel PET", "from minimum to maximum", "the median", "units"),
        Planted("SPACING_OUTLIER", image_file(23), "voxel size", "1.5x1.5x12 mm", "1.5x1.5x2 mm", "Check the header"),
        Planted("SHAPE_OUTLIER", image_file(23), "field of view", "36x33x240 mm", "36x33x40 mm", "part of the body"),
    ]  # fmt: skip


def _labels(root: Path) -> list[Planted]:
    near = arrays(24)[2].astype(np.float32)
    save(root / label_file(24), near * np.float32(0.97))
    unknown = arrays(25)[2]
    unknown[unknown == 2] = 255
    save(root / label_file(25), unknown)
    instances = np.zeros(SHAPE, np.uint8)
    instances.ravel()[:120] = np.repeat(np.arange(1, 13), 10)
    save(root / label_file(26), instances)
    save(root / label_file(27), np.zeros(SHAPE, np.uint8))
    fragments = arrays(28)[2]
    fragments[0, 0, 0] = 1
    save(root / label_file(28), fragments)
    broken = arrays(29)[2].astype(np.float32)
    broken[1, 2, 3] = np.nan
    save(root / label_file(29), broken)
    save(root / label_file(30), arrays(30)[2].astype(np.float32) * np.float32(0.9998))
    shutil.copy(root / label_file(31), root / label_file(32))
    return [
        Planted("LABEL_NOT_WHOLE", label_file(24), "values", "0.97, 1.94 in ", "whole numbers", "--repair"),
        Planted("LABEL_VALUE_UNKNOWN", label_file(25), "values", "255 (", "one of 0, 1, 2", "--repair"),
        Planted("LABEL_LOOKS_LIKE_INSTANCES", label_file(26), "values", "1 to 12 without a gap", "one of 0, 1, 2", "instances"),
        Planted("LABEL_EMPTY", label_file(27), "voxels", "0 labelled voxels", "at least one", "nothing to segment"),
        Planted("LABEL_FRAGMENTS", label_file(28), "parts", "1 of value 1 with 1 voxel", "connected", "Remove"),
        Planted("LABEL_NOT_FINITE", label_file(29), "voxels", "1 voxel, the first at (1, 2, 3)", "whole numbers", "integers"),
        Planted("LABEL_ROUNDED", label_file(30), "values", "0.9998, 1.9996", "whole numbers", "as integers"),
        Planted("LABEL_DUPLICATE", label_file(31), "voxels", "case_031, case_032", "another label map", "belongs to"),
    ]  # fmt: skip


def _lists(root: Path) -> list[Planted]:
    for channel in (0, 1):
        shutil.copy(root / image_file(33, channel), root / image_file(34, channel))
    for number, new in ((35, "p01_a"), (36, "p01_b")):
        for channel in (0, 1):
            (root / image_file(number, channel)).rename(root / f"imagesTr/{new}_{channel:04d}.nii.gz")
        (root / label_file(number)).rename(root / f"labelsTr/{new}.nii.gz")
    description = (root / "dataset.json").read_text()
    splits = (root / "splits_final.json").read_text()
    for number, new in ((35, "p01_a"), (36, "p01_b")):
        description, splits = (text.replace(name(number), new) for text in (description, splits))
    (root / "dataset.json").write_text(description)
    split = json.loads(splits)[0]
    for moved in (name(34), "p01_b"):
        split["val"].remove(moved)
        split["train"].append(moved)
    (root / "splits_final.json").write_text(json.dumps([split]))
    save(root / "labelsTr/case_099.nii.gz", arrays(99)[2])
    describe(root, numTraining=CASES + 1, labels=LABELS | {"vessel": 30})
    flipped = nib.load(root / image_file(37)).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    nib.save(flipped, root / image_file(37))
    return [
        Planted("IMAGE_DUPLICATE", image_file(33), "voxels", "case_033, case_034", "another image", "Remove all but one"),
        Planted("SPLIT_LEAKS_IMAGE", "splits_final.json", "fold 0", "case_034 in training and case_033", "one side", "Remove one"),
        Planted("SUBJECTS_UNDECLARED", "dataset.json", "subject", "p01_a, p01_b", "subject of each case", "column subject"),
        Planted("SPLIT_MAY_LEAK_SUBJECT", "splits_final.json", "fold 0", "p01_b in training and p01_a", "one side", "Declare"),
        Planted("FILE_NOT_LISTED", "labelsTr/case_099.nii.gz", "file", "no case", "a case for each file", "List the file"),
        Planted("COUNT_DIFFERS", "dataset.json", "numTraining", "41", "40", "Correct the number"),
        Planted("LABEL_IN_NO_CASE", "dataset.json", "labels: vessel", "no voxel of value 30", "at least one case", "Remove the label"),
        Planted("ORIENTATIONS_MIXED", "dataset.json", "axis codes", "1 in RPS", "one orientation", "reorients all"),
    ]  # fmt: skip
