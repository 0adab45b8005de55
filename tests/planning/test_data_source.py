"""What a plan says about its dataset."""

from __future__ import annotations

from pathlib import Path

from medseg.data.datasets.cases import ReadingOptions
from medseg.planning.explained_experiment import DatasetSource, _data


def test_decisions_about_files_are_kept_and_a_single_subject_is_not_split(
    make_case, make_fingerprint, tmp_path
):
    alone = make_fingerprint(cases=[make_case("a")], labels=2)
    reading = ReadingOptions(files_root=str(tmp_path), repairs="repairs.yaml", trust_label_array=True)
    found = _data(alone, DatasetSource(Path("set"), "auto", reading))
    assert found["files_root"].value == str(tmp_path)
    assert found["repairs"].value == str(Path("repairs.yaml").resolve())
    assert found["trust_label_array"].value is True
    assert found["fold"].value == "all"
    several = make_fingerprint(cases=[make_case(name) for name in "abc"], labels=2)
    assert _data(several, DatasetSource(Path("set"), "auto"))["folds"].value == 3
