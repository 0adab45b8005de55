"""Entries 122 to 130: the file system."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from tests.catalogue.bench import VOXELS, Bench
from tests.catalogue.promise import Answer, Broken, joined, recipe
from tests.helpers.runs import files_of_at_most

NOBODY = 65534


@contextlib.contextmanager
def without_privileges() -> Iterator[Path]:
    """Yield a folder of the superuser's that may be entered, while this process has the rights of another user."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def give_up_privileges() -> None:
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


@recipe(122)
def closed_output(bench: Bench) -> Answer:
    model, image = bench.shared.model, bench.shared.good_image
    with without_privileges() as folder:
        shutil.copytree(model, folder / "model")
        shutil.copy(image, folder / "good.nii.gz")
        (folder / "out").mkdir()
        (folder / "out").chmod(0o555)
        give_up_privileges()
        return bench.run("predict", folder / "model", folder / "good.nii.gz", "-o", folder / "out")


@recipe(123)
def full_disk(bench: Bench) -> Answer:
    paths = bench.nifti("a.nii.gz"), bench.nifti("b.nii.gz", np.roll(VOXELS, 1))
    out = bench.folder / "out"
    words = ("predict", bench.shared.model, *paths, "-o", out, "--suffix", ".nii")
    with files_of_at_most(4000):
        answer = bench.run(*words)
    if joined(out) or list(out.glob("*.nii")):
        raise Broken("partial files are left")
    again = bench.run(*words, "--skip-existing")
    if again.code:
        raise Broken(f"not continued:\n{again.text}")
    return answer


@recipe(124)
def little_space(bench: Bench) -> list[Answer]:
    path = bench.nifti("a.nii.gz")
    usage = shutil.disk_usage(bench.folder)
    with mock.patch("shutil.disk_usage", return_value=usage._replace(free=1000)):
        predicted = bench.run(
            "predict",
            bench.shared.model,
            path,
            "-o",
            bench.folder / "out",
            "--probabilities",
            "--suffix",
            ".nii",
        )
        trained = bench.train(bench.dataset())
    if predicted.code != 4 or trained.code != 4:
        raise Broken(
            f"exit codes {predicted.code} and {trained.code}, expected 4:\n{predicted.text}{trained.text}"
        )
    return [predicted, trained]


@recipe(125)
def other_letters(bench: Bench) -> Answer:
    names = ("na me ü 体.nii.gz", "x" * 100 + ".nii.gz", "/".join(["d" * 60] * 20) + "/deep.nii.gz")
    return bench.predict(*(bench.nifti(name, np.roll(VOXELS, i)) for i, name in enumerate(names)))


@recipe(126)
def dashes_and_quotes(bench: Bench) -> Answer:
    for number, name in enumerate(
        ("-x.nii.gz", "a;touch ran.nii.gz", 'it\'s "b".nii.gz', "new\nline.nii.gz")
    ):
        bench.nifti(name, np.roll(VOXELS, number))
    before = Path.cwd()
    os.chdir(bench.folder)
    try:
        names = sorted(path.name for path in bench.folder.glob("*.nii.gz"))
        answer = bench.run("predict", bench.shared.model, "-o", "out", "--", *names)
    finally:
        os.chdir(before)
    if (bench.folder / "ran").exists() or len(list((bench.folder / "out").glob("*.nii.gz"))) != 4:
        raise Broken(f"other files than four:\n{answer.text}")
    return answer


@recipe(127)
def linked_output(bench: Bench) -> Answer:
    path, target = bench.nifti("a.nii.gz"), bench.folder / "elsewhere.nii.gz"
    target.write_bytes(b"precious")
    (bench.folder / "out").mkdir()
    (bench.folder / "out" / "a.nii.gz").symlink_to(target)
    answer = bench.run("predict", bench.shared.model, path, "-o", bench.folder / "out")
    if target.read_bytes() != b"precious":
        raise Broken("the target of the link was replaced")
    return answer


@recipe(128)
def long_name(bench: Bench) -> Answer:
    path = bench.nifti("a.nii")
    long = path.rename(bench.folder / ("x" * 250 + ".nii"))
    return bench.run("predict", bench.shared.model, long, "-o", bench.folder / "out")


@recipe(128, 1)
def nearly_too_long_name(bench: Bench) -> Answer:
    return bench.predict(bench.nifti("a.nii").rename(bench.folder / ("x" * 247 + ".nii")))


@recipe(128, 2)
def names_that_differ_in_case(bench: Bench) -> Answer:
    paths = bench.nifti("A.nii.gz"), bench.nifti("a.nii.gz")
    with mock.patch("medseg.inference.cohort.output_files.ignores_case", return_value=True):
        return bench.run("predict", bench.shared.model, *paths, "-o", bench.folder / "out")


@recipe(129)
def other_file_system(bench: Bench) -> Answer:
    path, elsewhere = bench.nifti("a.nii.gz"), bench.folder / "elsewhere"
    elsewhere.mkdir()
    with mock.patch.dict(os.environ, TMPDIR=str(elsewhere)), mock.patch.object(tempfile, "tempdir", None):
        answer = bench.predict(path)
    if list(elsewhere.iterdir()):
        raise Broken("temporary files elsewhere")
    return answer


@recipe(130)
def unreadable(bench: Bench) -> list[Answer]:
    image = bench.shared.good_image
    with without_privileges() as folder:
        path = folder / "a.nii.gz"
        shutil.copy(image, path)
        path.chmod(0)
        give_up_privileges()
        return [bench.run("check", path, file=path), bench.run("inspect", path, file=path)]
