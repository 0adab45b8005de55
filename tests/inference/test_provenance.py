"""What made a label map is noted beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.inference.provenance import FILE_NAME, UNFINISHED, ModelId, Provenance, model_hash


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_notes_are_kept_and_compared(tmp_path):
    one, two = (model_folder(tmp_path / name, name) for name in ("one", "two"))
    model_id = ModelId.from_folders([one], ["overlap=0.25"])
    with Provenance(tmp_path).recording(tmp_path / "a.nii.gz", model_id, instances=True):
        pass
    notes = Provenance(tmp_path)
    assert notes.knows("a")
    assert not notes.knows("b")
    assert notes.is_by("a", model_id)
    assert notes.is_by("a", model_id, instances=True)
    for other in (
        ModelId.from_folders([one]),
        ModelId.from_folders([two], ["overlap=0.25"]),
        ModelId.from_folders([one, two], ["overlap=0.25"]),
    ):
        assert not notes.is_by("a", other)
    with notes.recording(tmp_path / "b.nii.gz", ModelId.from_folders([two, one])):
        pass
    assert not notes.is_by("b", ModelId.from_folders([two, one]), instances=True)
    assert not notes.is_by("b", ModelId.from_folders([two, one]), probabilities=True)
    assert Provenance(tmp_path).model_of("b") == model_hash(two) != model_hash(one)
    assert Provenance(tmp_path).model_of("c") is None


@pytest.mark.parametrize("text", ["", "[]", '{"name": "a"', "\xff", json.dumps({"name": "a"}), "3\n{}"])
def test_what_cannot_be_read_is_not_noted(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    assert Provenance(tmp_path).model_of("a") is None


def test_what_a_killed_program_left_is_unfinished(tmp_path):
    target, model_id = tmp_path / "a.nii.gz", ModelId("one")

    Provenance(tmp_path).recording(target, model_id).__enter__()  # and then the power goes
    notes = Provenance(tmp_path)
    assert notes.knows("a")
    assert notes.is_unfinished("a")
    assert not notes.is_by("a", model_id)
    assert notes.model_of("a") == UNFINISHED
    with notes.recording(target, model_id):
        pass
    assert Provenance(tmp_path).is_by("a", model_id)
    with pytest.raises(OSError, match="disk"), Provenance(tmp_path).recording(target, ModelId("two")):
        raise OSError("disk full")
    assert Provenance(tmp_path).is_by("a", model_id)  # what was there is still there


def test_a_line_that_was_cut_off_harms_no_other(tmp_path):
    for name in ("a", "b"):
        with Provenance(tmp_path).recording(tmp_path / f"{name}.nii.gz", ModelId("one")):
            pass
        with (tmp_path / FILE_NAME).open("ab") as file:
            file.write(b'{"name": "c", "mod')
    assert Provenance(tmp_path).is_by("a", ModelId("one"))
    assert Provenance(tmp_path).is_by("b", ModelId("one"))


def test_only_what_was_made_here_is_removed_with_its_label_map(tmp_path):
    target = tmp_path / "a.nii.gz"
    beside = [tmp_path / name for name in ("a_instances.nii.gz", "a_instances.tsv", "a_probabilities.nii")]
    for file in beside:
        file.write_text("somebody's")
    with Provenance(tmp_path).recording(target, ModelId("one")):
        pass
    assert all(file.is_file() for file in beside)
    with Provenance(tmp_path).recording(target, ModelId("one"), instances=True, probabilities=True):
        pass
    with pytest.raises(OSError, match="disk"), Provenance(tmp_path).recording(target, ModelId("one")):
        raise OSError("disk full")
    assert all(file.is_file() for file in beside)
    with Provenance(tmp_path).recording(target, ModelId("one")):
        pass
    assert not any(file.is_file() for file in beside)


def test_no_model_has_no_mark(tmp_path):
    assert model_hash(tmp_path) == ""
