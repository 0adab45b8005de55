from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.inference.cohort.loaded_models import LoadedModels
from medseg.serve.job import Failure
from medseg.serve.worker import predict_job as module
from medseg.serve.worker.messages import Failed, Finished, Task
from medseg.serve.worker.predict_job import predict_job
from tests.helpers.dicom_series import save_series
from tests.helpers.services import image_bytes, save_toy_model
from tests.helpers.zip_archives import zip_of


@pytest.fixture(scope="module")
def models(toy_model: Path) -> LoadedModels:
    return LoadedModels.load(toy_model, device="cpu")


def answer(
    models: LoadedModels, folder: Path, upload: str, suffix: str = ".nii.gz", series: str = ""
) -> Finished | Failed:
    return predict_job(models, Task(folder, upload, "toy", suffix, series, 10**9), lambda _: None)


def test_an_archive_with_several_images_is_refused(models: LoadedModels, tmp_path: Path) -> None:
    content = image_bytes(tmp_path)
    (tmp_path / "image.zip").write_bytes(zip_of({"a.nii.gz": content, "b.nii.gz": content}))
    failed = answer(models, tmp_path, "image.zip")
    assert failed == Failed(
        Failure.REFUSED, "archive: found 2 images, expected one. Send each in an archive of its own."
    )


def test_channels_in_an_archive_are_one_image(tmp_path: Path) -> None:
    two = LoadedModels.load(save_toy_model(tmp_path / "model", channels=2), device="cpu")
    members = {f"Doe_000{index}.nii.gz": image_bytes(tmp_path, seed=index) for index in range(2)}
    (tmp_path / "image.zip").write_bytes(zip_of(members))
    assert isinstance(answer(two, tmp_path, "image.zip"), Finished)


def test_an_archive_may_lack_a_channel_if_the_model_accepts_that(tmp_path: Path) -> None:
    (tmp_path / "image.zip").write_bytes(zip_of({"Doe_0001.nii.gz": image_bytes(tmp_path)}))
    complete = LoadedModels.load(save_toy_model(tmp_path / "complete", channels=2), device="cpu")
    failed = answer(complete, tmp_path, "image.zip")
    assert isinstance(failed, Failed)
    assert "00000_0000.nii.gz" in failed.message
    folder = save_toy_model(tmp_path / "model", channels=2, absent_channels="zeros")
    done = answer(LoadedModels.load(folder, device="cpu"), tmp_path, "image.zip")
    assert isinstance(done, Finished)
    (note,) = [one for one in done.notes if "zeros were used" in one]
    assert "channel channel 0: found no file" in note
    assert "Doe" not in note


def test_a_dicom_segmentation_of_an_archive_without_a_series_is_refused(
    models: LoadedModels, tmp_path: Path
) -> None:
    (tmp_path / "image.zip").write_bytes(zip_of({"a.nii.gz": image_bytes(tmp_path)}))
    failed = answer(models, tmp_path, "image.zip", ".seg.dcm")
    assert isinstance(failed, Failed)
    assert "expected folders with DICOM series" in failed.message
    assert str(tmp_path) not in failed.message


def test_warnings_about_the_image_become_notes_without_paths(models: LoadedModels, tmp_path: Path) -> None:
    data = np.zeros((1, 12, 10, 8), np.float32)
    data[0, :3] = 1
    medseg.write(medseg.Volume(data, medseg.Grid.from_spacing((12, 10, 8))), tmp_path / "image.nii")
    with (tmp_path / "image.nii").open("ab") as file:
        file.write(b"more")
    done = answer(models, tmp_path, "image.nii")
    assert isinstance(done, Finished)
    assert [note for note in done.notes if note.startswith("image.nii: ")]
    assert not [note for note in done.notes if str(tmp_path) in note]


def test_an_error_in_medseg_names_the_place_and_not_its_message(
    models: LoadedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Path:
        raise ValueError("the header holds Doe^Jane")

    monkeypatch.setattr(module, "job_input", broken)
    failed = answer(models, tmp_path, "image.nii")
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.INTERNAL
    assert "Doe" not in failed.message + failed.place
    assert failed.place.startswith("ValueError@test_predict_job.py:")


def test_a_lack_of_memory_is_named(
    models: LoadedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> Path:
        raise MemoryError

    monkeypatch.setattr(module, "job_input", hungry)
    failed = answer(models, tmp_path, "image.nii")
    assert isinstance(failed, Failed)
    assert (failed.failure, "too little memory" in failed.message) == (Failure.RESOURCES, True)


def test_one_of_several_series_in_an_archive_is_chosen_by_its_number(
    models: LoadedModels, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(-200, 300, (1, 12, 10, 8)).astype(np.int16)
    volume = medseg.Volume(data, medseg.Grid.from_spacing((12, 10, 8), (1, 1, 2)))
    members = {
        f"Doe/{name}/{file.name}": file.read_bytes()
        for name in ("a", "b")
        for file in save_series(tmp_path / name, volume).iterdir()
    }
    (tmp_path / "image.zip").write_bytes(zip_of(members))
    failed = answer(models, tmp_path, "image.zip")
    assert isinstance(failed, Failed)
    assert "Choose one by its number or UID with the field series" in failed.message
    assert "Doe" not in failed.message
    assert str(tmp_path) not in failed.message
    assert isinstance(answer(models, tmp_path, "image.zip", series="2"), Finished)
