"""``medseg quantize`` without the network: which cases it takes, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.quantization import quantize_model
from tests.helpers.services import save_toy_model


@pytest.mark.parametrize("ends", [False, True])
def test_figures_of_a_dataset_are_printed(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantoms(tmp_path / "data", cases=6, shape=(10, 10, 8), spacing=(30, 30, 30))
    model = save_toy_model(tmp_path / "model", labels=read_dataset(tmp_path / "data").labels)
    seen: dict[str, Any] = {}

    def measured(folder: str, calibrate: tuple[Any, ...], measure: tuple[Any, ...], **options: Any) -> Any:
        options.pop("progress")(1, None, "calibrating a case")
        seen.update(options, calibrate=calibrate, measure=measure)
        dice = {"liver": 0.9, "spleen": 0.8}
        return quantize_model.Int8Figures(2, 7, ends, dice, {"liver": 0.898, "spleen": 0.802}, 12.0, 4.0)

    monkeypatch.setattr(quantize_model, "quantize_model", measured)
    words = [
        "--data",
        str(tmp_path / "data"),
        "--windows",
        "7",
        "--max-loss",
        "0.01",
        "--calibration-cases",
        "3",
    ]
    assert main(["quantize", str(model), *words]) == 0
    assert (seen["windows"], seen["largest_loss"]) == (7, 0.01)
    assert len(seen["calibrate"]) == 3
    assert not {case.id for case in seen["calibrate"]} & {case.id for case in seen["measure"]}
    out = capsys.readouterr().out
    assert "the model may have been trained on the measured cases" in out
    assert ["liver", "0.9000", "0.8980"] in [line.split() for line in out.splitlines()]
    assert "loss of mean Dice 0.0000 on 2 cases; 3.0 times fewer CPU seconds (12.0 to 4.0)" in out
    assert ("first and last convolution in float32" in out) == ends
    assert "medseg predict" in out


def test_a_model_that_is_no_run_needs_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(save_toy_model(tmp_path / "model"))]) == 1
    assert "--data: missing, expected the dataset" in capsys.readouterr().err
