"""A quality model is stored in a model folder, and turns properties into estimates and flags."""

from __future__ import annotations

import copy
import json

import pytest

from medseg.errors import ModelError
from medseg.inference.quality.case_quality import FlagKind
from medseg.inference.quality.fit_quality import fit_quality
from medseg.inference.quality.quality_model import QualityModel, VolumeRatios
from tests.helpers.reference_cases import reference_cases


@pytest.fixture(scope="module")
def model():
    return fit_quality(reference_cases())


@pytest.fixture
def usual():
    """The properties of a usual case."""
    features = copy.deepcopy(reference_cases()[0].features)
    features["border"]["liver"] = 0.05
    return features


def test_a_quality_model_survives_its_file(model, tmp_path):
    model.write(tmp_path)
    assert QualityModel.from_folder(tmp_path) == model
    assert QualityModel.from_folder(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values | {"format": 2}, "format: found 2, expected 1, because a newer medseg"),
        (lambda values: {key: values[key] for key in values if key != "format"}, "format: found None"),
        (lambda values: values | {"thresold": 1}, "thresold: unknown key"),
        (lambda values: [values], "not readable"),
    ],
)
def test_other_formats_and_damaged_files_are_refused(model, tmp_path, change, message):
    (tmp_path / "quality.json").write_text(json.dumps(change(model.to_plain())))
    with pytest.raises(ModelError, match=message) as error:
        QualityModel.from_folder(tmp_path)
    assert str(tmp_path / "quality.json") in str(error.value)


def test_a_usual_case_has_no_flag(model, usual):
    found = model.judge(usual)
    assert found.flags == ()
    assert not found.to_review
    assert found.coverage == 0.9
    liver = found.label("liver")
    assert liver.dice_low < liver.dice < liver.dice_high
    assert liver.volume_low_ml < usual["volume"]["liver"] * 1.02 < liver.volume_high_ml


@pytest.mark.parametrize(
    ("kind", "subject", "value", "flag", "sentence"),
    [
        ("volume", "liver", 20.0, FlagKind.VOLUME, "volume of liver: found 20 ml, expected "),
        ("volume", "liver", 0.1, FlagKind.VOLUME, "volume of liver: found 0.1 ml, expected "),
        (
            "components",
            "liver",
            12.0,
            FlagKind.COMPONENTS,
            "components of liver: found 12, expected at most ",
        ),
        (
            "border",
            "liver",
            0.6,
            FlagKind.BORDER,
            "liver at the border of the scan: found 60 %, expected at most ",
        ),
        (
            "empty",
            "liver",
            1.0,
            FlagKind.EMPTY,
            "liver: found no voxel, expected a label that is rarely absent",
        ),
        ("noise", "MRI", 0.9, FlagKind.IMAGE, "noise of MRI: found 0.9, expected 0.0"),
        (
            "brightness",
            "MRI",
            0.75,
            FlagKind.IMAGE,
            "mean intensity of MRI between its usual extremes: found 0.75, expected 0.",
        ),
    ],
)
def test_unusual_properties_are_flagged_with_found_and_expected(
    model, usual, kind, subject, value, flag, sentence
):
    usual[kind][subject] = value
    (first, *_) = model.judge(usual).flags
    assert first.kind is flag
    assert sentence in first.sentence
    assert (
        first.note("a.nii.gz")
        == f"a.nii.gz: {first.sentence}, as in the cross-validation of the model. Check the labels."
    )


def test_a_label_that_often_touches_the_border_is_not_flagged_for_it(model, usual):
    usual["border"]["liver"] = 0.1
    assert model.judge(usual).flags == ()
    never = reference_cases()
    for case in never:
        case.features["border"]["liver"] = 0.0
    (flag,) = fit_quality(never).judge(usual).flags
    assert flag.kind is FlagKind.BORDER


def test_a_label_that_is_often_absent_is_not_flagged_for_it(model, usual):
    found = model.judge(usual)
    assert not any("cyst" in flag.field for flag in found.flags)
    assert (found.label("cyst").volume_low_ml, found.label("cyst").volume_high_ml) == (0.0, 0.0)
    assert found.label("cyst").dice is None


def test_the_expected_dice_falls_where_labels_are_unlike_the_cross_validation(model, usual):
    before = model.judge(usual).label("liver")
    usual["volume"]["liver"] = 20.0
    after = model.judge(usual).label("liver")
    assert after.dice < 0.5 * before.dice
    assert after.dice_low == 0
    assert before.dice_low > 0.7


def test_a_low_expected_dice_is_flagged(model, usual):
    usual["expected soft Dice"]["liver"], usual["noise"]["MRI"] = 0.3, 0.08
    (flag, *_) = model.judge(usual).flags
    assert flag.kind is FlagKind.DICE
    assert flag.sentence.startswith("expected Dice of liver for a usual case: found 0.")
    assert ", expected at least 0." in flag.sentence


def test_ends_of_volumes_follow_from_the_predicted_volume():
    ratios = VolumeRatios(low=0.8, high=1.25, cases=40, absent_high_ml=0.3, absent_cases=30)
    assert ratios.ends(10.0) == (8.0, 12.5)
    assert ratios.ends(0.0) == (0.0, 0.3)
    assert VolumeRatios(cases=5).ends(10.0) == (None, None)
    assert VolumeRatios(cases=5).ends(0.0) == (0.0, None)


def test_unknown_properties_are_left_out(model, usual):
    usual["new property"] = {"MRI": 5.0}
    usual["noise"]["CT"] = 100.0
    usual["volume"]["kidney"] = 100.0
    assert model.judge(usual).flags == ()
    del usual["noise"]
    assert model.judge(usual).label("liver").dice is not None
