from __future__ import annotations

import json
from pathlib import Path

import medseg
from medseg.report.origin import models_of_predictions, origin_of_files


def test_files_options_and_versions_are_named(tmp_path: Path) -> None:
    files = {"predictions": tmp_path / "a" / "b", "references": "ref", "images": None}
    rows = origin_of_files(files, {"tolerance_mm": 1.0, "boundary_mm": None, "both_empty": "leave_out"})
    assert (rows["predictions"], rows["references"]) == ("…/a/b", "ref")
    assert "images" not in rows
    assert (rows["tolerance mm"], rows["boundary mm"], rows["both empty"]) == ("1", "automatic", "leave_out")
    assert rows["medseg"] == medseg.__version__


def test_models_of_predictions_are_named(tmp_path: Path) -> None:
    assert models_of_predictions(tmp_path) == {}
    (tmp_path / ".cohort").mkdir()
    (unknown,) = models_of_predictions(tmp_path).values()
    assert "cannot be read" in unknown
    one = {"model": "0a", "settings": "[]", "cases": 1}
    (tmp_path / "run.json").write_text(json.dumps({"models": [one]}))
    assert models_of_predictions(tmp_path) == {"model": "0a, 1 case"}
    other = {"model": "0b", "settings": '["overlap=0.25"]', "cases": 2}
    (tmp_path / "run.json").write_text(json.dumps({"models": [one, other]}))
    assert models_of_predictions(tmp_path) == {
        "model 1": "0a, 1 case",
        "model 2": '0b, 2 cases, settings ["overlap=0.25"]',
    }
