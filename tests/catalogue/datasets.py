"""Entries 57 to 70: descriptions of datasets, and what only a comparison of cases shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.catalogue.bench import AFFINE, SHAPE, Bench, ct_image, label_map
from tests.catalogue.promise import Answer, Broken, recipe


def image(root: Path, case: str, channel: int = 0) -> Path:
    return root / f"imagesTr/{case}_{channel:04d}.nii.gz"


def split(root: Path, train: list[str], validation: list[str]) -> Path:
    path = root / "splits_final.json"
    path.write_text(json.dumps([{"train": train, "val": validation}]))
    return path


def decathlon(root: Path, cases: list[tuple[str, str]]) -> Path:
    """Describe a dataset as the Decathlon does, by lists of files."""
    training = [{"image": one, "label": other} for one, other in cases]
    description = {
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "numTraining": len(training),
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def listed(root: Path, count: int = 5) -> list[tuple[str, str]]:
    return [(f"imagesTr/c{n}_0000.nii.gz", f"labelsTr/c{n}.nii.gz") for n in range(count)]


@recipe(57)
def duplicate_id(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    (root / "more").mkdir()
    shutil.copy(image(root, "c0"), root / "more/c0_0000.nii.gz")
    decathlon(root, [*listed(root), ("more/c0_0000.nii.gz", "labelsTr/c0.nii.gz")])
    return bench.trained_and_checked(root, "more/c0_0000.nii.gz")


@recipe(58)
def missing_files(bench: Bench) -> Answer:
    root = bench.dataset()
    decathlon(root, listed(root))
    image(root, "c1").unlink()
    (root / "labelsTr/c3.nii.gz").unlink()
    return bench.train(root)


@recipe(59)
def channels_of_other_grids(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    for number in range(5):
        shutil.copy(image(root, f"c{number}"), image(root, f"c{number}", 1))
    second = np.asarray(nib.load(image(root, "c2")).dataobj)
    nib.save(nib.Nifti1Image(second[:, :, :-1], AFFINE), image(root, "c2", 1))
    bench.describe(root, channel_names={"0": "T1", "1": "T2"})
    return bench.trained_and_checked(root, "c2_0001.nii.gz")


@recipe(60)
def same_image(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    shutil.copy(image(root, "c0"), image(root, "c4"))
    shutil.copy(root / "labelsTr/c0.nii.gz", root / "labelsTr/c4.nii.gz")
    splits = split(root, ["c0", "c1", "c2"], ["c3", "c4"])
    return [bench.run("check", root, file=splits)]


@recipe(61)
def same_person(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    for old, new in (("c0", "p01_a"), ("c4", "p01_b")):
        image(root, old).rename(image(root, new))
        (root / f"labelsTr/{old}.nii.gz").rename(root / f"labelsTr/{new}.nii.gz")
    splits = split(root, ["p01_a", "c1", "c2"], ["c3", "p01_b"])
    return [bench.run("check", root), bench.train(root, f"data.splits={splits}")]


@recipe(62)
def unknown_case(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    splits = split(root, ["c0", "c1", "c7"], ["c3"])
    return bench.trained_and_checked(root, splits, f"data.splits={splits}")


@recipe(63)
def case_on_both_sides(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    splits = split(root, ["c0", "c1"], ["c0", "c3"])
    return bench.trained_and_checked(root, splits, f"data.splits={splits}")


@recipe(64)
def too_few_cases(bench: Bench) -> Answer:
    root = bench.dataset()
    for number in (3, 4):
        image(root, f"c{number}").unlink()
        (root / f"labelsTr/c{number}.nii.gz").unlink()
    bench.describe(root, numTraining=3)
    return bench.train(root, "data.folds=5")


@recipe(65)
def wrong_count(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    return bench.trained_and_checked(bench.describe(root, numTraining=7).parent, "dataset.json")


@recipe(65, 1)
def inverted(bench: Bench) -> Answer:
    root = bench.dataset()
    bench.describe(root, labels={"0": "background", "1": "liver", "2": "tumour"}, channel_names={"MR": "0"})
    return bench.train(root)


def _text(variant: int, change: str) -> None:
    @recipe(66, variant)
    def broken_json(bench: Bench) -> list[Answer]:
        root = bench.dataset()
        path = root / "dataset.json"
        text = path.read_text()
        if change == "comma":
            path.write_text(text[:-1] + ",}")
        elif change == "mark":
            path.write_text(text, encoding="utf-8-sig")
            return [bench.train(root)]
        else:
            path.write_text(text.replace('"numTraining": 5', '"numTraining": NaN'))
        return [
            *bench.trained_and_checked(root, "dataset.json"),
            bench.run("inspect", root, file="dataset.json"),
        ]


for _variant, _change in enumerate(("comma", "mark", "nan")):
    _text(_variant, _change)


def _path(variant: int, written: str) -> None:
    @recipe(67, variant)
    def leaving_path(bench: Bench) -> list[Answer]:
        root = bench.dataset()
        secret = bench.folder / "secret.nii.gz"
        shutil.copy(image(root, "c0"), secret)
        name = str(secret) if written == "absolute" else written
        decathlon(root, [*listed(root, 4), (name, "labelsTr/c4.nii.gz")])
        return bench.trained_and_checked(root, "dataset.json")


_path(0, "../secret.nii.gz")
_path(1, "absolute")
_path(2, "$HOME/secret.nii.gz")


@recipe(68)
def invalid_ids(bench: Bench) -> list[Answer]:
    root = bench.dataset()
    answers = []
    for name in ("..", ".hidden", "-dash", "a/b", "a\nb", "x" * 200):
        rows = [f"c{n}\timagesTr/c{n}_0000.nii.gz\tlabelsTr/c{n}.nii.gz" for n in range(4)]
        quoted = f'"{name}"' if "\n" in name else name
        rows.append(f"{quoted}\timagesTr/c4_0000.nii.gz\tlabelsTr/c4.nii.gz")
        (root / "cases.tsv").write_text("case\timage\tlabel\n" + "\n".join(rows) + "\n")
        (root / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tliver\n2\ttumour\n")
        answers.append(bench.train(root, file="cases.tsv"))
    return answers


@recipe(69)
def outliers(bench: Bench) -> Answer:
    root = bench.folder / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(12):
        rng = np.random.default_rng(number)
        data = (rng.normal(0, 30, SHAPE) + 200 * label_map(0)).astype(np.int16)
        affine = AFFINE @ np.diag([1, 1, 10, 1]) if number == 7 else AFFINE
        pair = [nib.Nifti1Image(data, affine), nib.Nifti1Image(label_map(number % 4), affine)]
        if number == 3:
            pair = [one.as_reoriented(np.array([[2, 1], [0, 1], [1, 1]])) for one in pair]
        nib.save(pair[0], image(root, f"c{number}"))
        nib.save(pair[1], root / f"labelsTr/c{number}.nii.gz")
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 12,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    answer = bench.run("check", root, file="c7_0000.nii.gz")
    if "ORIENTATIONS_MIXED" not in answer.text:
        raise Broken("the other orientation is not reported")
    return answer


@recipe(70)
def wrong_units(bench: Bench) -> Answer:
    root = bench.dataset()
    for number in range(5):
        data = ct_image(number)
        nib.save(nib.Nifti1Image(data + (1024 if number == 2 else 0), AFFINE), image(root, f"c{number}"))
    bench.describe(root, channel_names={"0": "CT"})
    return bench.run("check", root, file="c2_0000.nii.gz")
