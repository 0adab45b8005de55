"""Images that a model was not trained for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.preprocessing.training_data import ImageMeasures, TrainingData
from medseg.data.preprocessing.unlike_training import (
    check_against_model,
    image_deviations,
    image_notes,
    is_constant,
    volume_deviations,
)
from medseg.errors import DataError, collected_warnings
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def notes_of(data, window=(8, 8, 8), names=("T1", "T2")):
    image = Volume(data, Grid.from_spacing(data.shape[1:]))
    with collected_warnings() as notes:
        check_against_model(image, names, window, ["a_t1.nii", "a_t2.nii"], "a_t1.nii")
    return notes


def test_the_channels_of_both_sides_are_named():
    message = r"a_t1\.nii: channels: found 3 \(a_t1\.nii, a_t2\.nii\), expected 2 \(T1, T2\)\. Give one file per channel"
    with pytest.raises(DataError, match=message):
        notes_of(np.zeros((3, 4, 4, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, bool])
def test_a_constant_channel_is_reported_with_its_value(dtype):
    data = np.random.default_rng(0).integers(0, 2, (2, 20, 18, 16)).astype(dtype)
    assert notes_of(data) == []
    data[1] = 1
    (note,) = notes_of(data)
    assert note.startswith("a_t1.nii: channel T2: found the value 1 in all voxels")
    data[1, 19, 17, 15] = 0  # one voxel outside of the sample
    assert notes_of(data) == []


def test_values_that_are_not_numbers_are_left_to_another_check():
    assert not is_constant(np.full((3, 3, 3), np.nan))


def test_a_single_slice_is_reported_for_3d_models_only():
    data = np.random.default_rng(0).random((2, 20, 18, 1))
    (note,) = notes_of(data)
    assert "a_t1.nii: found a single slice (20x18x1 voxels), expected a volume" in note
    assert notes_of(data, (8, 8, 1)) == []
    assert notes_of(data.transpose(0, 3, 1, 2), (8, 8, 1)) == []


CT_MODEL = Preprocessing.parse(
    {"channels": [{"method": "ct", "mean": 0, "std": 1, "low": -900, "high": 900}]}
)
CT = TrainingData.parse(
    {
        "cases": 9,
        "spacing": [[0.7, 0.9], [0.7, 0.9], [2, 5]],
        "extent": [[300, 400], [300, 400], [200, 500]],
        "channels": [{"low": [-1024, -990], "high": [600, 1400]}],
        "volumes_ml": {"liver": [900, 2400], "tumour": [0, 90]},
    }
)
USUAL = ImageMeasures(spacing=(0.8, 0.8, 3), extent=(350, 350, 300), low=(-1010,), high=(900,))


def deviations(
    image: ImageMeasures, data: TrainingData = CT, settings: Preprocessing = CT_MODEL
) -> list[str]:
    names = [f"CT{number}" for number in range(len(image.low))]
    return [
        f"{one.field}: {one.found}; {one.expected}" for one in image_deviations(image, data, settings, names)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": (0.5, 0.5, 1.5)},
        {"spacing": (1.7, 1.7, 9)},
        {"extent": (180, 180, 120)},
        {"low": (-1500,)},
    ],
)
def test_images_in_and_near_the_range_of_the_training_are_silent(changes: dict[str, Any]) -> None:
    assert deviations(USUAL.replace(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spacing": (0.8, 0.8, 15)}, ["voxel size: 0.8x0.8x15 mm; 0.7..0.9 x 0.7..0.9 x 2..5 mm"]),
        ({"spacing": (0.1, 0.8, 3)}, ["voxel size: 0.1x0.8x3 mm; 0.7..0.9 x 0.7..0.9 x 2..5 mm"]),
        ({"extent": (350, 350, 1800)}, ["field of view: 350x350x1800 mm; 300..400 x 300..400 x 200..500 mm"]),
        (
            {"low": (0,), "high": (1500,)},
            ["channel CT0: intensities from 0 to 1500; -1024..-990 to 600..1400"],
        ),
        ({"low": (0,), "high": (1,)}, ["channel CT0: intensities from 0 to 1; -1024..-990 to 600..1400"]),
        ({"high": (30_000,)}, ["channel CT0: intensities from -1010 to 30000; -1024..-990 to 600..1400"]),
    ],
)
def test_images_outside_of_the_range_are_named_with_figures(
    changes: dict[str, Any], expected: list[str]
) -> None:
    assert deviations(USUAL.replace(**changes)) == expected


def test_the_scale_of_a_channel_normalised_by_itself_matters_only_from_ten_times() -> None:
    settings = Preprocessing.parse({"channels": [{"method": "zscore"}]})
    data = TrainingData.parse({"cases": 2, "channels": [{"low": [0, 10], "high": [200, 1000]}]})
    for high, found in ((30, 0), (9000, 0), (10, 1), (20_000, 1)):
        image = ImageMeasures(low=(0,), high=(high,))
        assert len(deviations(image, data, settings)) == found


def test_foreground_intensities_of_an_imported_model() -> None:
    data = TrainingData.parse({"cases": 0, "foreground": [[-150, 300]]})
    assert deviations(ImageMeasures(low=(-1000,), high=(900,)), data) == []
    assert deviations(ImageMeasures(low=(400,), high=(900,)), data) == [
        "channel CT0: intensities from 400 to 900; values among -150..300, those of the labelled voxels"
    ]


@pytest.mark.parametrize(
    ("liver", "tumour", "fields"),
    [(400, 0, []), (7000, 200, []), (200, 5, ["liver"]), (8000, 300, ["liver", "tumour"]), (0, 0, ["liver"])],
)
def test_volumes_far_from_those_of_the_training(liver: float, tumour: float, fields: list[str]) -> None:
    found = [one.field for one in volume_deviations({"liver": liver, "tumour": tumour, "other": 5}, CT)]
    assert found == [f"volume of {name}" for name in fields]


def test_a_sentence_has_all_parts(make_volume: Any) -> None:
    image = make_volume((9, 9, 9), spacing=(0.8, 0.8, 30))
    notes = image_notes(image, CT, CT_MODEL, ["CT"], "a.nii")
    assert notes[0] == (
        "a.nii: voxel size: found 0.8x0.8x30 mm, expected 0.7..0.9 x 0.7..0.9 x 2..5 mm, which the model was trained on. Check "
        "the labels: models may fail on images unlike those of their training."
    )
    assert image_notes(image, None, CT_MODEL, ["CT"], "a.nii") == ()
