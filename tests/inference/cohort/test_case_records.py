"""Which model wrote a label map is recorded next to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.data.datasets.cases import Case
from medseg.errors import DataError
from medseg.inference.cohort.case_records import FILE_NAME, UNFINISHED, ModelId, Provenance, model_hash

CASE = Case("a", (Path("missing.nii.gz"),))


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_records_are_kept_and_compared(tmp_path):
    one, two = (model_folder(tmp_path / name, name) for name in ("one", "two"))
    model_id = ModelId.from_folders([one], {"overlap": 0.25})
    with Provenance(tmp_path).recording(CASE, tmp_path / "a.nii.gz", model_id, instances=True):
        pass
    provenance = Provenance(tmp_path)
    assert provenance.knows("a")
    assert not provenance.knows("b")
    assert provenance.is_by("a", model_id)
    assert provenance.is_by("a", model_id, instances=True)
    for other in (
        ModelId.from_folders([one]),
        ModelId.from_folders([two], {"overlap": 0.25}),
        ModelId.from_folders([one, two], {"overlap": 0.25}),
    ):
        assert not provenance.is_by("a", other)
    with provenance.recording(CASE, tmp_path / "b.nii.gz", ModelId.from_folders([two, one])):
        pass
    assert not provenance.is_by("b", ModelId.from_folders([two, one]), instances=True)
    assert not provenance.is_by("b", ModelId.from_folders([two, one]), probabilities=True)
    assert Provenance(tmp_path).model_of("b") == model_hash(two) != model_hash(one)
    assert Provenance(tmp_path).model_of("c") is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"name": "a"', "\xff", json.dumps({"format": 1, "name": "a"}), "3\n{}"]
)
def test_lines_that_cannot_be_read_count_as_absent(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    assert Provenance(tmp_path).model_of("a") is None


def test_a_newer_format_is_refused(tmp_path):
    with Provenance(tmp_path).recording(CASE, tmp_path / "a.nii.gz", ModelId("one")):
        pass
    assert json.loads((tmp_path / FILE_NAME).read_text().splitlines()[0])["format"] == 1
    (tmp_path / FILE_NAME).write_text(json.dumps({"format": 2, "case": "a"}))
    with pytest.raises(DataError, match=r"written by a newer medseg \(format 2; this is format 1\)"):
        Provenance(tmp_path)


def test_settings_are_compared_whatever_their_order():
    one = ModelId.from_folders([], {"overlap": 0.25, "precision": "float32", "mirror_axes": [0]})
    other = ModelId.from_folders([], {"mirror_axes": (0,), "precision": "float32", "overlap": 0.25})
    assert one == other
    assert one.settings == ("mirror_axes=[0]", "overlap=0.25", "precision=float32")


def test_files_of_a_killed_program_are_unfinished(tmp_path):
    target, model_id = tmp_path / "a.nii.gz", ModelId("one")

    Provenance(tmp_path).recording(CASE, target, model_id).__enter__()  # and then the program is killed
    provenance = Provenance(tmp_path)
    assert provenance.knows("a")
    assert provenance.is_unfinished("a")
    assert not provenance.is_by("a", model_id)
    assert provenance.model_of("a") == UNFINISHED
    with provenance.recording(CASE, target, model_id):
        pass
    assert Provenance(tmp_path).is_by("a", model_id)
    with pytest.raises(OSError, match="disk"), Provenance(tmp_path).recording(CASE, target, ModelId("two")):
        raise OSError("disk full")
    assert Provenance(tmp_path).is_by("a", model_id)  # what was there is still there


def test_a_line_that_was_cut_off_does_not_spoil_others(tmp_path):
    for name in ("a", "b"):
        with Provenance(tmp_path).recording(CASE, tmp_path / f"{name}.nii.gz", ModelId("one")):
            pass
        with (tmp_path / FILE_NAME).open("ab") as file:
            file.write(b'{"name": "c", "mod')
    assert Provenance(tmp_path).is_by("a", ModelId("one"))
    assert Provenance(tmp_path).is_by("b", ModelId("one"))


def test_only_recorded_companion_files_are_deleted(tmp_path):
    target = tmp_path / "a.nii.gz"
    beside = [tmp_path / name for name in ("a_instances.nii.gz", "a_instances.tsv", "a_probabilities.nii")]
    for file in beside:
        file.write_text("somebody's")
    with Provenance(tmp_path).recording(CASE, target, ModelId("one")):
        pass
    assert all(file.is_file() for file in beside)
    with Provenance(tmp_path).recording(CASE, target, ModelId("one"), instances=True, probabilities=True):
        pass
    with pytest.raises(OSError, match="disk"), Provenance(tmp_path).recording(CASE, target, ModelId("one")):
        raise OSError("disk full")
    assert all(file.is_file() for file in beside)
    with Provenance(tmp_path).recording(CASE, target, ModelId("one")):
        pass
    assert not any(file.is_file() for file in beside)


def test_a_folder_without_a_model_has_no_hash(tmp_path):
    assert model_hash(tmp_path) == ""


def test_a_change_of_an_image_or_of_an_output_is_noticed(tmp_path):
    image, target = tmp_path / "image.nii.gz", tmp_path / "a.nii.gz"
    probabilities = tmp_path / "a_probabilities.nii"
    image.write_text("image")
    case = Case("a", (image,))
    with Provenance(tmp_path).recording(case, target, ModelId("one"), probabilities=True):
        target.write_text("labels")
        probabilities.write_text("probabilities")
    for path in (image, target, probabilities):
        assert Provenance(tmp_path).is_unchanged("a", case.images, [target, probabilities])
        content = path.read_text()
        path.write_text(content[:3])
        assert not Provenance(tmp_path).is_unchanged("a", case.images, [target, probabilities])
        path.write_text(content)
    assert not Provenance(tmp_path).is_unchanged("b", case.images, [target, probabilities])
