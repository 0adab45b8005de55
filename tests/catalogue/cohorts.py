"""Entries 111 to 121: predictions of many images."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np

from medseg.inference.cohort.loaded_models import LoadedModels
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.cohort.predict_folder import FolderPrediction, named_cases
from medseg.io.files import read_labels
from tests.catalogue.bench import AFFINE, VOXELS, Bench, ct_image
from tests.catalogue.faults import end_of, lines_until
from tests.catalogue.promise import Answer, Broken, joined, recipe


def images(bench: Bench, count: int) -> Path:
    folder = bench.folder / "images"
    for number in range(count):
        bench.nifti(f"images/c{number:02d}.nii.gz", np.roll(VOXELS, number, axis=0))
    return folder


@recipe(111)
def one_bad_image(bench: Bench) -> Answer:
    folder = images(bench, 9)
    (folder / "c05.nii.gz").write_bytes(b"")
    out = bench.folder / "out"
    words = ("predict", bench.shared.model, folder, "-o", out, "--skip-existing")
    answer = bench.run(*words, file="c05.nii.gz")
    if answer.code != 2 or len(list(out.glob("*.nii.gz"))) != 8:
        raise Broken(f"exit code {answer.code}:\n{answer.text}")
    bench.nifti("images/c05.nii.gz")
    again = bench.run(*words)
    if again.code or "8 of 9 cases predicted already" not in again.text:
        raise Broken(f"the failed case is not predicted again:\n{again.text}")
    return answer


@recipe(112)
def one_file_for_two_channels(bench: Bench) -> Answer:
    path = bench.nifti("a.nii.gz")
    return bench.run("predict", bench.shared.two_channels, path, "-o", bench.folder / "out", file=path)


@recipe(112, 1)
def missing_channel(bench: Bench) -> Answer:
    path = bench.nifti("a_0000.nii.gz")
    return bench.run(
        "predict", bench.shared.two_channels, path, "-o", bench.folder / "out", file="a_0001.nii.gz"
    )


def unlike_training(bench: Bench, path: Path) -> list[Answer]:
    model = bench.shared.ct_model
    answers = [bench.predict(path, model=model), bench.run("check", model, path, file=path)]
    record = "".join(path.read_text() for path in (bench.folder / "out1").rglob("*.json*"))
    if "trained on" not in record:
        raise Broken(f"the warning is not in the record of the prediction:\n{record}")
    if answers[0].text.count("trained on") > 3 * 3:
        raise Broken(f"not told once per case:\n{answers[0].text}")
    return answers


@recipe(113)
def other_spacing(bench: Bench) -> list[Answer]:
    return unlike_training(
        bench, bench.nifti("a.nii.gz", ct_image(1)[4:14, 4:14, 8:12], AFFINE @ np.diag([1, 1, 5, 1]))
    )


@recipe(113, 1)
def other_modality(bench: Bench) -> list[Answer]:
    return unlike_training(bench, bench.nifti("a.nii.gz", np.abs(VOXELS)[:10, :10, :10]))


@recipe(114)
def one_output_name(bench: Bench) -> Answer:
    paths = bench.nifti("images/a.nii"), bench.nifti("more/a.nii.gz")
    return bench.run("predict", bench.shared.model, *paths, "-o", bench.folder / "out")


@recipe(115)
def output_over_input(bench: Bench) -> Answer:
    path = bench.nifti("a.nii.gz")
    before = path.read_bytes()
    answer = bench.run("predict", bench.shared.model, path, "-o", bench.folder, file=path)
    if path.read_bytes() != before:
        raise Broken("the input was replaced")
    return answer


@recipe(116)
def cut_output(bench: Bench) -> Answer:
    folder, out = images(bench, 2), bench.folder / "out"
    bench.run("predict", bench.shared.model, folder, "-o", out)
    path = out / "c00.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    answer = bench.run("predict", bench.shared.model, folder, "-o", out, "--skip-existing")
    if path.read_bytes() != whole:
        raise Broken("not predicted again")
    bench.nifti("images/c00.nii.gz", VOXELS[::-1].copy())
    again = bench.run("predict", bench.shared.model, folder, "-o", out, "--skip-existing")
    if path.read_bytes() == whole:
        raise Broken(f"the output of another image is kept:\n{again.text}")
    return answer


@recipe(117)
def no_memory(bench: Bench) -> Answer:
    path = bench.nifti("a.nii.gz")
    words = ("-o", bench.folder / "out", "--max-memory", "1B")
    return bench.run("predict", bench.shared.model, path, *words)


@recipe(118)
def empty_folder(bench: Bench) -> Answer:
    (bench.folder / "images").mkdir()
    return bench.run(
        "predict", bench.shared.model, bench.folder / "images", "-o", bench.folder / "out", file="images"
    )


@recipe(119)
def interrupted(bench: Bench) -> Answer:
    folder, out = images(bench, 8), bench.folder / "out"
    words = ("predict", bench.shared.model, folder, "-o", out, "--device", "cpu")
    process = bench.start(*words, passing=4)
    lines_until(process, "c02.nii.gz")  # which is printed once the network has run on the next case
    process.send_signal(signal.SIGINT)
    code, text = end_of(process)
    written = list(out.glob("*.nii.gz"))
    if code != 130 or not 3 <= len(written) < 8 or joined(out):
        raise Broken(f"exit code {code}, {len(written)} files:\n{text}")
    for path in written:
        read_labels(path)
    again = bench.run(*words, "--skip-existing")
    if again.code or f"{len(written)} of 8 cases predicted already" not in again.text:
        raise Broken(f"not continued:\n{again.text}")
    return Answer(code, text)


@recipe(120)
def waiting_reader(bench: Bench) -> list[Answer]:
    import os

    from tests.helpers.dicom_series import Series

    folder = Series(bench.folder / "ct", 6).save()
    os.mkfifo(folder / "zz.dcm")
    return [bench.predict(folder), bench.check(folder)]


@recipe(121)
def vanishing_input(bench: Bench) -> Answer:
    folder = images(bench, 6)
    models = LoadedModels.load(bench.shared.model, {}, device="cpu")
    cases = named_cases([folder], 1)
    outcomes = iter(
        FolderPrediction(models, cases, OutputFiles(bench.folder / "out", ".nii.gz", False, False))
    )
    first = next(outcomes)
    (folder / "c05.nii.gz").unlink()
    *others, last = outcomes
    if first.error or any(one.error for one in others) or last.error is None:
        raise Broken("other cases failed")
    return Answer(2, str(last.error), "c05.nii.gz")
