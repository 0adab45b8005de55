"""Entries 46 to 56: label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.io.files import read_labels
from tests.catalogue.bench import AFFINE, SHAPE, Bench, label_map
from tests.catalogue.promise import Answer, Broken, recipe


def with_label(bench: Bench, data: Any, affine: Any = AFFINE, case: str = "c1") -> tuple[Path, Path]:
    """Return a dataset and the label map that was replaced in it."""
    root = bench.dataset()
    path = root / f"labelsTr/{case}.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return root, path


def both(bench: Bench, data: Any, affine: Any = AFFINE) -> list[Answer]:
    root, path = with_label(bench, data, affine)
    return bench.trained_and_checked(root, path)


@recipe(46)
def not_finite(bench: Bench) -> list[Answer]:
    data = label_map(1).astype(np.float32)
    data[1, 2, 3] = np.nan
    return both(bench, data)


@recipe(47)
def nearly_whole(bench: Bench) -> list[Answer]:
    root, path = with_label(bench, label_map(1))
    image = nib.Nifti1Image(label_map(1) * np.uint8(2), AFFINE)
    image.header.set_slope_inter(0.4999, 0)
    path.write_bytes(b"")
    nib.save(image, path)
    if not np.allclose(np.unique(nib.load(path).get_fdata()), [0, 0.9998, 1.9996]):
        raise Broken("the file does not hold 0.9998")
    if not np.array_equal(read_labels(path).data[0], label_map(1)):
        raise Broken("the values are not rounded")
    if bench.train(root).code:
        raise Broken("the training is refused")
    return [bench.run("check", root, file=path)]


@recipe(47, 1)
def interpolated(bench: Bench) -> list[Answer]:
    data = label_map(1).astype(np.float32)
    data[4, 5, 4:9] = 0.5
    return both(bench, data)


@recipe(48)
def unknown_value(bench: Bench) -> list[Answer]:
    data = label_map(1)
    data[0, 0, :3] = 7
    return both(bench, data)


@recipe(48, 1)
def mask_of_255(bench: Bench) -> list[Answer]:
    return both(bench, (label_map(1) > 0).astype(np.uint8) * np.uint8(255))


@recipe(48, 2)
def image_as_label(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    path = root / "labelsTr/c1.nii.gz"
    path.write_bytes((root / "imagesTr/c1_0000.nii.gz").read_bytes())
    return bench.trained_and_checked(root, path)


@recipe(49)
def with_gaps(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    for path in (root / "labelsTr").iterdir():
        data = np.asarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(np.array([0, 2, 30], np.uint8)[data], AFFINE), path)
    bench.describe(root, labels={"background": 0, "liver": 2, "tumour": 30})
    answer = bench.train(root)
    run = next(bench.folder.glob("run*"))
    predicted = bench.predict(root / "imagesTr/c0_0000.nii.gz", model=run / "model")
    written = read_labels(bench.folder / "out2" / "c0_0000.nii.gz").data
    if not set(np.unique(written)) <= {0, 2, 30}:
        raise Broken(f"values {np.unique(written)} were written")
    unlike = [
        line for line in predicted.text.splitlines() if "volume of" not in line
    ]  # of a model of two steps
    return [answer, Answer(predicted.code, "\n".join(unlike)), bench.check(root)]


@recipe(50)
def background_only(bench: Bench) -> list[Answer]:
    return both(bench, np.zeros(SHAPE, np.uint8))


@recipe(51)
def label_in_no_case(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    bench.describe(root, labels={"background": 0, "liver": 1, "tumour": 2, "vessel": 3})
    return bench.trained_and_checked(root, "")


@recipe(52)
def label_in_no_training_case(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    for number in range(1, 5):
        nib.save(
            nib.Nifti1Image(np.minimum(label_map(number), 1), AFFINE), root / f"labelsTr/c{number}.nii.gz"
        )
    splits = root / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["c1", "c2", "c3", "c4"], "val": ["c0"]}]))
    return bench.trained_and_checked(root, "", f"data.splits={splits}")


@recipe(53)
def other_shape(bench: Bench) -> list[Answer]:
    return both(bench, label_map(1)[:, :, :-1])


@recipe(54)
def shifted_a_little(bench: Bench) -> list[Answer]:
    affine = AFFINE.copy()
    affine[0, 3] += 1e-3
    return both(bench, label_map(1), affine)


@recipe(54, 1)
def shifted(bench: Bench) -> list[Answer]:
    affine = AFFINE.copy()
    affine[0, 3] += 2
    return both(bench, label_map(1), affine)


@recipe(54, 2)
def flipped(bench: Bench) -> list[Answer]:
    return both(bench, label_map(1), np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE)


def _value(variant: int, dtype: type, value: int) -> None:
    @recipe(55, variant)
    def beyond_the_type(bench: Bench) -> list[Answer]:
        data = label_map(1).astype(dtype)
        data[0, 0, :2] = value
        return both(bench, data)


_value(0, np.int32, 70000)
_value(1, np.int16, -1)


@recipe(56)
def many_labels(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    values = np.arange(1001).astype(np.uint16)
    for path in (root / "labelsTr").iterdir():
        data = np.asarray(nib.load(path).dataobj).astype(np.uint16)
        sheet = SHAPE[1] * SHAPE[2]
        data[0] = values[:sheet].reshape(SHAPE[1:])
        data[1] = values[-sheet:].reshape(SHAPE[1:])
        nib.save(nib.Nifti1Image(data, AFFINE), path)
    bench.describe(root, labels={"background": 0, **{f"label{value}": value for value in range(1, 1001)}})
    return [bench.train(root, "train.batch_size=1")]
