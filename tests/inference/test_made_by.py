"""What made a label map is noted beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.inference.provenance import FILE_NAME, UNFINISHED, MadeBy, Maker, mark_of


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_notes_are_kept_and_compared(tmp_path):
    one, two = (model_folder(tmp_path / name, name) for name in ("one", "two"))
    maker = Maker.of([one], ["overlap=0.25"])
    with MadeBy(tmp_path).noting(tmp_path / "a.nii.gz", maker, instances=True):
        pass
    notes = MadeBy(tmp_path)
    assert notes.knows("a")
    assert not notes.knows("b")
    assert notes.is_by("a", maker)
    assert notes.is_by("a", maker, instances=True)
    for other in (Maker.of([one]), Maker.of([two], ["overlap=0.25"]), Maker.of([one, two], ["overlap=0.25"])):
        assert not notes.is_by("a", other)
    with notes.noting(tmp_path / "b.nii.gz", Maker.of([two, one])):
        pass
    assert not notes.is_by("b", Maker.of([two, one]), instances=True)
    assert not notes.is_by("b", Maker.of([two, one]), probabilities=True)
    assert MadeBy(tmp_path).model_of("b") == mark_of(two) != mark_of(one)
    assert MadeBy(tmp_path).model_of("c") is None


@pytest.mark.parametrize("text", ["", "[]", '{"name": "a"', "\xff", json.dumps({"name": "a"}), "3\n{}"])
def test_what_cannot_be_read_is_not_noted(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    assert MadeBy(tmp_path).model_of("a") is None


def test_what_a_killed_program_left_is_unfinished(tmp_path):
    target, maker = tmp_path / "a.nii.gz", Maker("one")

    MadeBy(tmp_path).noting(target, maker).__enter__()  # and then the power goes
    notes = MadeBy(tmp_path)
    assert notes.knows("a")
    assert notes.is_unfinished("a")
    assert not notes.is_by("a", maker)
    assert notes.model_of("a") == UNFINISHED
    with notes.noting(target, maker):
        pass
    assert MadeBy(tmp_path).is_by("a", maker)
    with pytest.raises(OSError, match="disk"), MadeBy(tmp_path).noting(target, Maker("two")):
        raise OSError("disk full")
    assert MadeBy(tmp_path).is_by("a", maker)  # what was there is still there


def test_a_line_that_was_cut_off_harms_no_other(tmp_path):
    for name in ("a", "b"):
        with MadeBy(tmp_path).noting(tmp_path / f"{name}.nii.gz", Maker("one")):
            pass
        with (tmp_path / FILE_NAME).open("ab") as file:
            file.write(b'{"name": "c", "mod')
    assert MadeBy(tmp_path).is_by("a", Maker("one"))
    assert MadeBy(tmp_path).is_by("b", Maker("one"))


def test_only_what_was_made_here_is_removed_with_its_label_map(tmp_path):
    target = tmp_path / "a.nii.gz"
    beside = [tmp_path / name for name in ("a_instances.nii.gz", "a_instances.tsv", "a_probabilities.nii")]
    for file in beside:
        file.write_text("somebody's")
    with MadeBy(tmp_path).noting(target, Maker("one")):
        pass
    assert all(file.is_file() for file in beside)
    with MadeBy(tmp_path).noting(target, Maker("one"), instances=True, probabilities=True):
        pass
    with pytest.raises(OSError, match="disk"), MadeBy(tmp_path).noting(target, Maker("one")):
        raise OSError("disk full")
    assert all(file.is_file() for file in beside)
    with MadeBy(tmp_path).noting(target, Maker("one")):
        pass
    assert not any(file.is_file() for file in beside)


def test_no_model_has_no_mark(tmp_path):
    assert mark_of(tmp_path) == ""
