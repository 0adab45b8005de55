"""``medseg import``: what is printed and written, and the exit codes."""

from __future__ import annotations

import json

import pytest

from medseg.cli.main import main


def test_a_source_must_be_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["import", "nonsense", "a", "-o", "b"])
    assert end.value.code == 1
    assert "nnunet" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_source_without_a_model_raises(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main(["import", "nnunet", str(tmp_path / name), "-o", str(tmp_path / "model")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"medseg import: {tmp_path / name}")
    assert "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_hostile_plan_is_refused(tmp_path, capsys):
    folder = tmp_path / "T__P__2d"
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps({"configurations": {"2d": {"inherits_from": "2d"}}}))
    assert main(["import", "nnunet", str(folder), "-o", str(tmp_path / "model")]) == 1
    assert "inherit in a circle: 2d -> 2d" in capsys.readouterr().err


def test_impossible_output_raises(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    output = tmp_path / "file" / "x"
    assert main(["import", "nnunet", str(tmp_path / "model"), "-o", str(output)]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'file'}: cannot be written" in told
    assert "Traceback" not in told
