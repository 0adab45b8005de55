"""Every kind of file that medseg reads: how an intact one is written, and how it is read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

import medseg
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.splits import read_splits
from medseg.experiment.config import ExperimentConfig
from medseg.inference.cohort.case_records import (
    FORMAT,
    CaseRecord,
    CaseState,
    Prediction,
    VoxelState,
    read_record,
)
from medseg.interop.monai.import_weights import read_state
from medseg.io.companions.instance_files import read_instances
from medseg.io.files import read, read_grid, read_labels
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import load_model, save_model
from medseg.model_folder.settings import SavedModel
from medseg.storage.archives import extract
from medseg.storage.torch_files import read_torch_file
from medseg.train.reports.reporting import read_metrics
from medseg.volumes.volume import Volume
from tests.helpers.dicom_series import Series

Build = Callable[[Path], Path]
Read = Callable[[Path], Any]
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, (9, 10, 11)).astype(np.int16)
MAP = (RNG.random((9, 10, 11)) > 0.7).astype(np.uint8)
AFFINE = np.array([[0.8, 0.1, 0, 5], [-0.1, 0.8, 0, -7], [0, 0, 2.5, 9], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: Name in reports.
        build: Writes an intact file into an empty folder, with all that belongs to it, and returns the file to damage.
        read: Reads the file and returns what matters of its content.
        has_checksum: Whether damage to its content must be noticed.
        covered_after: The bytes after which a checksum covers the rest of the file, if it does not cover the whole.
    """

    name: str
    build: Build
    read: Read
    has_checksum: bool = False
    covered_after: bytes = b""

    def covered_from(self, intact: bytes) -> int:
        """Return the position from which on damage to the intact bytes must be noticed; their end if there is no checksum."""
        if self.covered_after:
            return intact.index(self.covered_after) + len(self.covered_after)
        return 0 if self.has_checksum else len(intact)


def content(value: Any) -> bytes:
    """Return the bytes of what a reader returned, the same for the same content."""
    if isinstance(value, Volume):
        return b"|".join(
            (value.data.tobytes(), np.round(value.grid.affine, 4).tobytes(), str(value.data.shape).encode())
        )
    if isinstance(value, dict):
        return b"".join(
            str(key).encode() + content(item) for key, item in sorted(value.items(), key=lambda i: str(i[0]))
        )
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    return repr(value).encode(errors="backslashreplace")


def _image(name: str, image: Any) -> Build:
    def build(folder: Path) -> Path:
        nib.save(image, folder / name)
        return folder / name

    return build


def _nifti(name: str, voxels: Any = VOXELS, cls: Any = nib.Nifti1Image) -> Build:
    return _image(name, cls(voxels, AFFINE))


def _pair(name: str, damaged: str) -> Build:
    def build(folder: Path) -> Path:
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / name)
        return folder / damaged

    return build


def _itk(name: str, voxels: Any = VOXELS, *, packed: bool = False, damaged: str | None = None) -> Build:
    def build(folder: Path) -> Path:
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
        image.SetSpacing((0.8, 0.8, 2.5))
        sitk.WriteImage(image, str(folder / name), useCompression=packed)
        return folder / (damaged or name)

    return build


def _picture(name: str, voxels: Any, **options: Any) -> Build:
    def build(folder: Path) -> Path:
        Image.fromarray(voxels).save(folder / name, **options)
        return folder / name

    return build


def _tiff(name: str, voxels: Any, **options: Any) -> Build:
    def build(folder: Path) -> Path:
        tifffile.imwrite(folder / name, voxels, **options)
        return folder / name

    return build


def _series(index: int) -> Build:
    def build(folder: Path) -> Path:
        files = sorted(Series(folder / "series").save().iterdir())
        return files[index]

    return build


def _text(name: str, text: str, **others: str) -> Build:
    def build(folder: Path) -> Path:
        for other, written in others.items():
            (folder / other.replace("__", "/")).write_text(written)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return build


def _dataset(name: str, text: str, image: str, label: str) -> Build:
    """A dataset of two cases whose description is damaged."""

    def build(folder: Path) -> Path:
        for case in ("a", "b"):
            for pattern, voxels in ((image, VOXELS), (label, MAP)):
                path = folder / pattern.format(case)
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(voxels, AFFINE), path)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return build


def _model_folder(name: str) -> Build:
    def build(folder: Path) -> Path:
        saved = SavedModel.parse(
            {
                "medseg": "0.1",
                "name": "liver",
                "model": {"name": "unet_3d", "channels": [4, 8]},
                "channel_names": ["CT"],
                "preprocessing": {"channels": [{"method": "zscore"}]},
                "window": [8, 8, 8],
            }
        )
        torch.manual_seed(0)
        model = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        save_model(folder / "model", model, saved, Labels.from_names({"background": 0, "liver": 5}))
        return folder / "model" / name

    return build


def _tensors(name: str) -> Build:
    def build(folder: Path) -> Path:
        torch.manual_seed(0)
        state = {"conv.weight": torch.randn(4, 2, 3, 3, 3), "conv.bias": torch.randn(4)}
        if name.endswith(".safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
        return folder / name

    return build


def _archive(name: str, kind: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / "content" / "inner").mkdir(parents=True)
        (folder / "content" / "plans.json").write_text(json.dumps({"a": list(range(200))}))
        (folder / "content" / "inner" / "voxels").write_bytes(VOXELS.tobytes())
        shutil.make_archive(str(folder / "packed"), kind, folder / "content")
        (packed,) = folder.glob("packed.*")
        return packed.rename(folder / name)

    return build


def _unpacked(path: Path) -> dict[str, bytes]:
    folder = extract(path, path.parent / "out")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _instances(damaged: str) -> Build:
    def build(folder: Path) -> Path:
        ids = np.zeros((9, 10, 11), np.int32)
        ids[1:3, 1:3, 1:3], ids[5:8, 5:8, 5:8] = 1, 2
        nib.save(nib.Nifti1Image(ids, AFFINE), folder / "i.nii.gz")
        (folder / "i.tsv").write_text("id\tlabel_value\tscore\n1\t1\t0.5\n2\t3\t0.25\n")
        return folder / damaged

    return build


def _saved_array(folder: Path) -> Path:
    np.save(folder / "a.npy", VOXELS)
    return folder / "a.npy"


def _pickle(folder: Path) -> Path:
    (folder / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    return folder / "a.pt"


MSD = {
    "name": "toy",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver"},
    "numTraining": 2,
    "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"],
}
NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
CASE_RECORD = {
    "format": FORMAT,
    **asdict(CaseRecord("a", CaseState.PREDICTED, Prediction("m", input=VoxelState("1", "2")), ("a.nii",))),
}
EXPERIMENT = """name: toy
data: {path: data, folds: 2}
model: {name: unet_3d, channels: [4, 8], num_blocks: 1}
patch: {size: [16, 16, 16]}
train: {steps: 10, optimizer: {name: sgd, lr: 1e-2}}
"""
GREY = RNG.integers(0, 255, (20, 24)).astype(np.uint8)
RGB = RNG.integers(0, 255, (20, 24, 3)).astype(np.uint8)
DICOM = (("first DICOM slice", 0), ("middle DICOM slice", 2), ("last DICOM slice", -1))


def _read_folder(path: Path) -> Any:
    return read(path.parent)


def _summary(path: Path) -> Any:
    dataset = read_dataset(path.parent)
    return [
        (case.id, [image.name for image in case.images], str(case.label)) for case in dataset.cases
    ], dataset.labels


KINDS: tuple[Kind, ...] = (
    Kind("NIfTI", _nifti("a.nii"), read),
    Kind("NIfTI, float", _nifti("a.nii", VOXELS.astype(np.float32)), read),
    Kind("NIfTI, scaled", _image("a.nii", nib.Nifti1Image(VOXELS * 0.37, AFFINE, dtype=np.int16)), read),
    Kind("NIfTI, big endian", _nifti("a.nii", VOXELS.astype(">i2")), read),
    Kind("NIfTI, RGB", _nifti("a.nii", np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])), read),
    Kind("NIfTI, several volumes", _nifti("a.nii", np.stack([VOXELS] * 2, -1)), read),
    Kind("NIfTI-2", _nifti("a.nii", cls=nib.Nifti2Image), read),
    Kind("NIfTI, gzip", _nifti("a.nii.gz"), read, True),
    Kind("NIfTI, gzip, grid only", _nifti("a.nii.gz"), lambda path: read_grid(path).affine.round(4).tolist()),
    Kind("label map", _nifti("a.nii", MAP), read_labels),
    Kind("label map, gzip", _nifti("a.nii.gz", MAP), read_labels, True),
    Kind("header of a pair", _pair("a.img", "a.hdr"), lambda path: read(path.with_suffix(".img"))),
    Kind("voxels of a pair", _pair("a.img", "a.img"), read),
    Kind("NRRD", _itk("a.nrrd"), read),
    Kind("NRRD, gzip", _itk("a.nrrd", packed=True), read, covered_after=b"\n\n"),
    Kind("MGH", _image("a.mgh", nib.MGHImage(VOXELS, AFFINE)), read),
    Kind("MGZ", _image("a.mgz", nib.MGHImage(VOXELS, AFFINE)), read, True),
    Kind("MetaImage", _itk("a.mha"), read),
    Kind("MetaImage, zlib", _itk("a.mha", packed=True), read, covered_after=b"LOCAL\n"),
    Kind("NRRD, voxels in gzip", _itk("a.nhdr", packed=True, damaged="a.raw.gz"), lambda path: read(path.with_name("a.nhdr")), True),
    Kind("MetaImage, voxels in zlib", _itk("a.mhd", packed=True, damaged="a.zraw"), lambda path: read(path.with_name("a.mhd")), True),
    Kind("MetaImage header", _itk("a.mhd"), read),
    Kind("MetaImage voxels", _itk("a.mhd", damaged="a.raw"), lambda path: read(path.with_suffix(".mhd"))),
    Kind("PNG, grey", _picture("a.png", GREY), read, True),
    Kind("PNG, colour", _picture("a.png", RGB), read, True),
    Kind("PNG, alpha", _picture("a.png", np.dstack([RGB, GREY])), read, True),
    Kind("PNG, grey and alpha", _picture("a.png", np.dstack([GREY, GREY])), read, True),
    Kind("PNG, label map", _picture("a.png", (GREY > 128).astype(np.uint8)), read_labels, True),
    Kind("JPEG", _picture("a.jpg", RGB), read),
    Kind("BMP", _picture("a.bmp", RGB), read),
    Kind("TIFF", _tiff("a.tif", RGB), read),
    Kind("TIFF, stack", _tiff("a.tif", VOXELS), read),
    Kind("TIFF, tiles", _tiff("a.tif", VOXELS[0].astype(np.uint16), tile=(16, 16)), read),
    Kind("TIFF, deflate", _tiff("a.tif", VOXELS, compression="zlib"), read),
    Kind("TIFF, ImageJ", _tiff("a.tif", VOXELS, imagej=True, metadata={"spacing": 2.5, "unit": "mm"}), read),
    Kind("TIFF, OME", _tiff("a.ome.tif", VOXELS, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}), read),
    *(Kind(name, _series(index), _read_folder) for name, index in DICOM),
    Kind("dataset.json of the Decathlon", _dataset("dataset.json", json.dumps(MSD), "imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"), _summary),
    Kind("dataset.json of nnU-Net", _dataset("dataset.json", json.dumps(NNUNET), "imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"), _summary),
    Kind("cases.tsv", _dataset("cases.tsv", "case\timage\tlabel\na\ti/a.nii\tl/a.nii\nb\ti/b.nii\tl/b.nii\n", "i/{}.nii", "l/{}.nii"), _summary),
    Kind("labels.tsv of a dataset", _dataset("labels.tsv", "value\tname\n0\tbackground\n1\tliver\n", "images/{}.nii", "labels/{}.nii"), _summary),
    Kind("labels.tsv", _text("labels.tsv", "value\tname\tcolor\n0\tbackground\t#000000\n5\tliver\t#dd8265\n"), Labels.from_tsv),
    Kind("splits.json", _text("splits.json", json.dumps([{"train": ["a"], "val": ["b"]}])), read_splits),
    Kind("experiment", _text("a.yaml", EXPERIMENT), ExperimentConfig.load),
    Kind("metrics.jsonl", _text("metrics.jsonl", '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'), read_metrics),
    Kind("record of a case", _text("a.json", json.dumps(CASE_RECORD, default=sorted)), read_record),
    *(
        Kind(f"{name} of a model folder", _model_folder(name), lambda path: load_model(path.parent)[0].state_dict(), True)
        for name in ("config.yaml", "labels.tsv", "model.safetensors", "manifest.json")
    ),
    Kind("safetensors to import", _tensors("a.safetensors"), read_state),
    Kind("torch file", _tensors("a.pt"), read_torch_file, True),
    Kind("torch file to import", _tensors("a.pt"), read_state, True),
    Kind("pickle named .pt", _pickle, read_torch_file),
    Kind("zip archive", _archive("a.zip", "zip"), _unpacked, True),
    Kind("tar archive, gzip", _archive("a.tar.gz", "gztar"), _unpacked, True),
    Kind("tar archive", _archive("a.tar", "tar"), _unpacked),
    Kind("instance map", _instances("i.nii.gz"), lambda path: read_instances(path).ids, True),
    Kind("instance table", _instances("i.tsv"), lambda path: read_instances(path.with_name("i.nii.gz")).scores),
    Kind("array named .nii", lambda folder: _saved_array(folder).rename(folder / "a.nii"), read),
)  # fmt: skip
