"""The workbench of an entry: a folder, a small model and dataset, and commands whose output is captured."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medseg.cli.main import main
from medseg.errors import DataWarning, format_warning
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from tests.catalogue.promise import Answer, Broken, joined
from tests.helpers.children import Program, start_program

SHAPE = (20, 22, 24)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
VOXELS = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.int16)
CASES = 5
CONFIG = """\
name: toy
data: {path: DATA, folds: 2}
model: {name: unet_3d, channels: [4, 8], num_blocks: 1}
patch: {size: [8, 8, 8]}
train: {steps: 2, report_every: 1, validation_batches: 1, workers: 0}
"""


def label_map(number: int = 0) -> np.ndarray[Any, Any]:
    """Return a label map of the dataset: a block of 1 with a block of 2 inside."""
    label = np.zeros(SHAPE, np.uint8)
    label[4 : 15 + number, 5:18, 4:20] = 1
    label[7:10, 8:12, 8 + number : 14] = 2
    return label


def ct_image(number: int = 0) -> np.ndarray[Any, Any]:
    """Return a CT image: air around a body with a liver."""
    data = np.full(SHAPE, -1000, np.int16)
    data[4:16, 4:18] = 40
    data[label_map(number) > 0] = 120
    return data + np.random.default_rng(number).integers(0, 9, SHAPE).astype(np.int16)


class Shared:
    """What all entries may read: a model, a model of two channels and a dataset. Created when they are first used.

    Args:
        folder: Empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Path:
        """A model folder of a network with random weights that expects one channel named CT."""
        return self._model("model", ("CT",))

    @cached_property
    def two_channels(self) -> Path:
        """A model folder that expects the channels T1 and FLAIR."""
        return self._model("two", ("T1", "FLAIR"))

    def _model(self, name: str, channels: Sequence[str]) -> Path:
        options = {"channels": [4, 8], "num_blocks": 1}
        torch.manual_seed(3)
        labels = Labels.from_names({"background": 0, "liver": 1, "tumour": 2})
        model = build_model("unet_3d", in_channels=len(channels), num_classes=3, **options)
        saved = SavedModel.parse(
            {
                "medseg": "0",
                "name": "toy",
                "model": {"name": "unet_3d", **options},
                "channel_names": list(channels),
                "preprocessing": {
                    "spacing": (1.0, 1.0, 2.0),
                    "channels": [{"method": "zscore"}] * len(channels),
                },
                "window": (16, 16, 16),
                "predict": {"precision": "float32"},
            }
        )
        save_model(self.folder / name, model, saved, labels)
        return self.folder / name

    @cached_property
    def dataset(self) -> Path:
        """An nnU-Net raw folder with five cases, one channel and two labels."""
        root = self.folder / "dataset"
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        for number in range(CASES):
            rng = np.random.default_rng(number)
            image = (rng.normal(0, 30, SHAPE) + 200 * label_map(number)).astype(np.int16)
            nib.save(nib.Nifti1Image(image, AFFINE), root / f"imagesTr/c{number}_0000.nii.gz")
            nib.save(nib.Nifti1Image(label_map(number), AFFINE), root / f"labelsTr/c{number}.nii.gz")
        description = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "liver": 1, "tumour": 2},
            "numTraining": CASES,
            "file_ending": ".nii.gz",
        }
        (root / "dataset.json").write_text(json.dumps(description))
        return root

    @cached_property
    def ct_model(self) -> Path:
        """A model folder that was trained for two steps on CT images of this dataset's shape and voxel size."""
        root = self.folder / "ct"
        shutil.copytree(self.dataset, root)
        for number in range(CASES):
            nib.save(nib.Nifti1Image(ct_image(number), AFFINE), root / f"imagesTr/c{number}_0000.nii.gz")
        description = json.loads((root / "dataset.json").read_text()) | {"channel_names": {"0": "CT"}}
        (root / "dataset.json").write_text(json.dumps(description))
        config = self.folder / "ct.yaml"
        config.write_text(CONFIG.replace("DATA", str(root)))
        if main(["train", str(config), "--run", str(self.folder / "ct_run")]):
            raise Broken("the model was not trained")
        return self.folder / "ct_run" / "model"

    @cached_property
    def good_image(self) -> Path:
        """An image without faults."""
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), self.folder / "good.nii.gz")
        return self.folder / "good.nii.gz"


class Bench:
    """The workbench of one entry.

    Args:
        folder: Empty folder of the entry.
        shared: What all entries may read.
    """

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.folder = folder
        self.shared = shared
        self._outputs = 0

    def nifti(
        self, name: str = "a.nii", data: Any = VOXELS, affine: Any = AFFINE, kind: Any = nib.Nifti1Image
    ) -> Path:
        """Write an image with nibabel."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(kind(data, affine), path)
        return path

    def patched(self, offset: int, content: bytes, path: Path | None = None) -> Path:
        """Write an image and overwrite bytes of it, inside the gzip data if it is packed."""
        path = path or self.nifti()
        packed = path.name.endswith(".gz")
        raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        raw[offset : offset + len(content)] = content
        path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
        return path

    def coded(
        self,
        name: str = "a.nii",
        *,
        qform: Any = None,
        sform: Any = None,
        data: Any = VOXELS,
        pixdim: Any = None,
    ) -> Path:
        """Write an image whose forms are the given affines; None gives the code 0."""
        header = nib.Nifti1Header()
        header.set_data_dtype(data.dtype)
        header.set_data_shape(data.shape)
        header.set_qform(AFFINE if qform is None else qform, 0 if qform is None else 1)
        header.set_sform(AFFINE if sform is None else sform, 0 if sform is None else 2)
        if pixdim is not None:
            header["pixdim"][1:4] = pixdim
        header["magic"], header["vox_offset"] = b"n+1", 352
        path = self.folder / name
        path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
        return path

    def run(self, *words: object, file: str | Path = "") -> Answer:
        """Run a command in this process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            try:
                code = main([str(word) for word in words])
            except SystemExit as stop:
                code = int(stop.code or 0)
        shown = "".join(
            format_warning(str(one.message), one.category, one.filename, one.lineno)
            for one in caught
            if issubclass(one.category, DataWarning)
        )
        name = file.name if isinstance(file, Path) else file
        return Answer(code, out.getvalue() + err.getvalue() + shown, name)

    def start(self, *words: object, passing: int | None = None) -> Program:
        """Start a command as a process of its own; a prediction holds its cases after a number of them."""
        held = ("tests.helpers.held_prediction", self.folder / "notes", passing)
        program = ("medseg",) if passing is None else held
        return start_program("-m", *program, *words, errors_in_output=True)

    def predict(self, *images: object, model: Path | None = None, options: Sequence[str] = ()) -> Answer:
        """Predict images together with a good one, whose label map must be written; nothing else may be left."""
        self._outputs += 1
        out = self.folder / f"out{self._outputs}"
        good = self.shared.good_image
        file = images[0] if images and isinstance(images[0], Path) else ""
        answer = self.run(
            "predict",
            model or self.shared.model,
            *images,
            good,
            "-o",
            out,
            "--device",
            "cpu",
            *options,
            file=file,
        )
        if answer.code in (0, 2) and not (out / "good.nii.gz").is_file():
            raise Broken(f"the good image was not predicted:\n{answer.text}")
        if joined(out):
            raise Broken(f"temporary files are left: {joined(out)}")
        return answer

    def image(self, path: Path, *, check: bool = True, options: Sequence[str] = ()) -> list[Answer]:
        """Predict and check one image."""
        answers = [self.predict(path, options=options)]
        return answers if not check else [*answers, self.check(path, options=options)]

    def check(self, *paths: Path, options: Sequence[str] = ()) -> Answer:
        """Check paths."""
        return self.run("check", *paths, *options, file=paths[0])

    def dataset(self) -> Path:
        """Return a copy of the dataset of the entry's own."""
        copy = self.folder / "data"
        shutil.copytree(self.shared.dataset, copy)
        return copy

    def describe(self, root: Path, **values: Any) -> Path:
        """Change keys of dataset.json; None removes one."""
        path = root / "dataset.json"
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))
        return path

    def train(self, root: Path, *overrides: object, file: str | Path = "") -> Answer:
        """Train on a dataset for two steps."""
        config = self.folder / "toy.yaml"
        config.write_text(CONFIG.replace("DATA", str(root)))
        self._outputs += 1
        run = self.folder / f"run{self._outputs}"
        return self.run("train", config, "--run", run, *overrides, file=file)

    def trained_and_checked(self, root: Path, file: str | Path, *overrides: object) -> list[Answer]:
        """Train on a dataset and check it."""
        checked = self.run("check", root, file=file)
        return [self.train(root, *overrides, file=file), checked]

    def read(self, path: Path, expected: Any = VOXELS) -> list[Answer]:
        """Predict an image without any message, after its voxels were compared with the expected ones."""
        from medseg.io.files import read

        if not np.array_equal(read(path).data[0], expected):
            raise Broken(f"{path.name}: other voxels")
        return [self.predict(path)]
