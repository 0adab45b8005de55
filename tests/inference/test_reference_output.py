"""What a model computed when its folder was written is found again, and every change of weights or preprocessing is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from medseg.check.check_paths import check_paths
from medseg.errors import DataWarning
from medseg.inference.reference_output import (
    FILE,
    GeneratedImage,
    compare_reference,
    compute_reference,
    read_reference,
    stored_places,
    write_reference,
)
from medseg.model_folder.folder import load_model, save_model
from medseg.model_folder.settings import SavedModel
from medseg.storage.manifest import write_manifest
from tests.helpers.predictors import MakePredictor


@pytest.fixture
def folder(tmp_path: Path, make_predictor: MakePredictor) -> Path:
    predictor = make_predictor(window=(16, 16, 12), spacing=(1.5, 1.5, 3.0), method="zscore", crop=False)
    path = tmp_path / "model"
    save_model(path, predictor.model, predictor.saved, predictor.labels, finish=write_reference)
    return path


def fields(folder: Path) -> list[str]:
    reference = read_reference(folder)
    assert reference is not None
    return [one.field for one in compare_reference(folder, reference)]


def test_the_output_is_reproduced_bit_for_bit(folder: Path) -> None:
    assert (folder / FILE).stat().st_size < 200_000
    reference = read_reference(folder)
    assert reference is not None
    assert compute_reference(folder, reference.generated) == reference
    report = check_paths([folder])
    assert report.findings == ()
    assert report.passed == (f"{folder}: the reference output is reproduced.",)


@pytest.mark.parametrize(
    "count", [24, 1000, 2**24 - 1, 118 * 64**3]
)  # the last has no float32 for its last index
def test_stored_logits_reach_from_the_first_to_the_last(count: int) -> None:
    places = stored_places(count).tolist()
    assert places[0] == 0
    assert places[-1] == count - 1
    assert places == sorted(set(places))
    assert max(b - a for a, b in pairwise(places)) <= 1.001 * count / 23 + 1


def change_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(iter(state))
    state[name].view(-1)[0] *= 1.0001
    save_file(state, path)


def change_spacing(folder: Path) -> None:
    replace(folder, preprocessing={"spacing": (1.5, 1.5, 3.3)})


def change_orientation(folder: Path) -> None:
    replace(folder, preprocessing={"orientation": "LPS"})


def change_normalisation(folder: Path) -> None:
    replace(folder, preprocessing={"channels": [{"method": "rescale"}]})


def replace(folder: Path, preprocessing: dict[str, object]) -> None:
    saved = SavedModel.load(folder / "config.yaml")
    changed = saved.preprocessing.replace(**preprocessing)
    (folder / "config.yaml").write_text(saved.replace(preprocessing=changed.to_plain()).to_yaml())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (change_weight, "logits"),
        (change_spacing, "preprocessing"),
        (change_orientation, "preprocessing"),
        (change_normalisation, "preprocessing"),
    ],
)
def test_changes_that_the_manifest_hides_are_found(
    folder: Path, change: Callable[[Path], None], field: str
) -> None:
    change(folder)
    write_manifest(folder)
    assert field in fields(folder)
    (finding, *_) = check_paths([folder]).findings
    assert (finding.code, finding.severity) == ("MODEL_REFERENCE_DIFFERS", "error")


def test_a_changed_file_is_found_by_the_manifest_first(folder: Path) -> None:
    change_weight(folder)
    assert [one.code for one in check_paths([folder]).findings] == ["MODEL_DAMAGED"]


def on_another_machine(folder: Path, **changes: object) -> None:
    path = folder / FILE
    values = json.loads(path.read_text())
    values["arithmetic"]["processor"] = "another"
    path.write_text(json.dumps(values | changes))
    write_manifest(folder)


def test_on_another_machine_a_small_difference_is_tolerated(folder: Path) -> None:
    reference = read_reference(folder)
    assert reference is not None
    near = [value * (1 + 1e-5) for value in reference.logits]
    on_another_machine(folder, logits=near, labels="0" * 64, prepared="0" * 64)
    assert fields(folder) == []


def test_on_another_machine_a_large_difference_is_found(folder: Path) -> None:
    reference = read_reference(folder)
    assert reference is not None
    on_another_machine(folder, logits=[value + 1 for value in reference.logits])
    assert fields(folder) == ["logits"]


def test_a_model_without_reference_is_a_note(tmp_path: Path, make_predictor: MakePredictor) -> None:
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    findings = check_paths([tmp_path / "model"]).findings
    assert [(one.code, one.severity) for one in findings] == [("MODEL_WITHOUT_REFERENCE", "note")]


@pytest.mark.parametrize(
    ("content", "found"), [("{", "no valid JSON"), ('{"format": 2}', "2"), ('{"format": 1}', "missing")]
)
def test_a_damaged_reference_is_an_error(folder: Path, content: str, found: str) -> None:
    (folder / FILE).write_text(content)
    write_manifest(folder)
    (finding,) = check_paths([folder]).findings
    assert finding.code == "MODEL_REFERENCE_DIFFERS"
    assert found in f"{finding.field} {finding.found}"


def test_images_are_those_of_the_model(make_predictor: MakePredictor) -> None:
    saved = make_predictor(channels=2, window=(16, 16, 12), spacing=(1.5, 1.5, 3.0)).saved
    image = GeneratedImage.for_model(saved, saved.window).volume()
    assert image.data.shape == (2, 13, 13, 10)
    assert image.grid.axcodes == "LPI"
    assert np.allclose(image.grid.spacing, (1.875, 1.875, 3.75))
    assert not np.array_equal(image.data[0], image.data[1])
    two = make_predictor(2, window=(16, 12, 1)).saved
    flat = GeneratedImage.for_model(two, two.window)
    assert flat.shape == (16, 12, 3)


def test_long_windows_of_volumes_are_halved(tmp_path: Path, make_predictor: MakePredictor) -> None:
    predictor = make_predictor(window=(70, 16, 17))
    save_model(tmp_path / "m", predictor.model, predictor.saved, predictor.labels, finish=write_reference)
    reference = read_reference(tmp_path / "m")
    assert reference is not None
    assert reference.generated.window == (35, 16, 17)


def test_a_model_that_cannot_be_run_is_written_with_a_warning(
    tmp_path: Path, make_predictor: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("medseg.inference.reference_output.compute_reference", fail)
    predictor = make_predictor()
    with pytest.warns(DataWarning, match=r"toy: reference output: .*written without reference\.json"):
        save_model(tmp_path / "m", predictor.model, predictor.saved, predictor.labels, finish=write_reference)
    assert not (tmp_path / "m" / FILE).exists()
    assert load_model(tmp_path / "m")[0].num_classes == 4
