"""What made a label map is noted beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.inference.made_by import FILE_NAME, MadeBy, Maker, mark_of


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_notes_are_kept_and_compared(tmp_path):
    one, two = (model_folder(tmp_path / name, name) for name in ("one", "two"))
    maker = Maker.of([one], ["overlap=0.25"])
    MadeBy(tmp_path).add("a", maker, instances=True)
    notes = MadeBy(tmp_path)
    assert notes.knows("a")
    assert not notes.knows("b")
    assert notes.is_by("a", maker)
    assert notes.is_by("a", maker, instances=True)
    for other in (Maker.of([one]), Maker.of([two], ["overlap=0.25"]), Maker.of([one, two], ["overlap=0.25"])):
        assert not notes.is_by("a", other)
    notes.add("b", Maker.of([two, one]))
    assert not notes.is_by("b", Maker.of([two, one]), instances=True)
    assert MadeBy(tmp_path).model_of("b") == mark_of(two) != mark_of(one)
    assert MadeBy(tmp_path).model_of("c") is None


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "\xff", json.dumps({"a": {"model": None}})])
def test_what_cannot_be_read_is_not_noted(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    assert MadeBy(tmp_path).model_of("a") is None


def test_no_model_has_no_mark(tmp_path):
    assert mark_of(tmp_path) == ""
