"""One prediction is assessed by its predictor, with and without a quality model."""

from __future__ import annotations

import numpy as np
import pytest

import medseg
from medseg.data.preprocessing.training_data import TrainingData, annotated_volumes, measure_image
from medseg.errors import DataWarning
from medseg.inference.predictor import Predictor
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.inference.quality.assessment import evidence_features
from medseg.inference.quality.case_quality import CaseQuality, FlagKind
from medseg.inference.quality.quality_model import DiceRegression, QualityModel, UsualRange, VolumeRatios
from medseg.inference.uncertainty.case_evidence import CaseEvidence, OutputEvidence
from medseg.model_folder.folder import save_model
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

GRID = Grid.from_spacing((12, 10, 9), (1, 1, 2))
NARROW = UsualRange(median=0.0, below=1e-3, above=1e-3)


@pytest.fixture
def image():
    values = np.random.default_rng(0).normal(size=(1, *GRID.shape))
    return Volume(values.astype(np.float32), GRID)


def quality_model(**usual):
    return QualityModel(
        cases=50,
        threshold=1.5,
        dice={"liver": DiceRegression(intercept=0.9, low=-0.1, high=0.05, cases=50)},
        volumes={"liver": VolumeRatios(low=0.5, high=2.0, cases=50)},
        usual=usual,
    )


def with_quality(predictor, model, data=None):
    saved = predictor.saved if data is None else predictor.saved.replace(training_data=data)
    return Predictor(predictor.model, saved, predictor.labels, device="cpu", quality=model)


def test_a_model_without_any_record_has_no_flags_and_says_nothing(make_predictor, image):
    predictor = make_predictor()
    found = predictor.assess(image)
    assert found.quality == CaseQuality()
    np.testing.assert_array_equal(found.labels.data, predictor(image).data)


def test_a_model_without_a_cross_validation_has_flags_from_its_training_data(make_predictor, image):
    predictor = make_predictor()
    labels = predictor(image)
    volumes = annotated_volumes(labels.data, GRID.voxel_volume, predictor.labels)
    usual = TrainingData.from_images([measure_image(image, predictor.saved.preprocessing, volumes)])
    assert with_quality(predictor, None, usual).assess(image).quality.flags == ()
    liver = volumes["liver"]
    assert liver > 0
    other = usual.replace(volumes_ml={"liver": [liver / 20, liver / 10]}, spacing=[[5, 6], [5, 6], [5, 6]])
    with pytest.warns(DataWarning, match="voxel size"):
        found = with_quality(predictor, None, other).assess(image).quality
    assert [flag.kind for flag in found.flags] == [FlagKind.VOLUME, FlagKind.IMAGE]
    assert found.labels == ()
    assert found.coverage is None
    assert f"volume of liver: found {liver:.3g} ml, expected " in found.flags[0].sentence


def test_a_quality_model_gives_estimates_and_learned_flags(make_predictor, image):
    model = quality_model(brightness={"channel 0": NARROW})
    found = with_quality(make_predictor(), model).assess(image)
    liver = annotated_volumes(found.labels.data, GRID.voxel_volume, make_predictor().labels)["liver"]
    estimate = found.quality.label("liver")
    assert (estimate.volume_low_ml, estimate.volume_high_ml, found.quality.coverage) == (None, None, None)
    assert (estimate.dice, estimate.dice_low, estimate.dice_high) == pytest.approx((0.9, 0.0, 0.95))
    usual = with_quality(make_predictor(), quality_model()).assess(image).quality
    estimate = usual.label("liver")
    assert (estimate.volume_low_ml, estimate.volume_high_ml) == pytest.approx(
        (liver / 2, liver * 2), rel=1e-5
    )
    assert (estimate.dice_low, usual.coverage, usual.flags) == (pytest.approx(0.8), 0.9, ())
    (flag,) = found.quality.flags
    assert flag.kind is FlagKind.IMAGE
    assert "channel 0" in flag.sentence


def test_a_learned_flag_replaces_the_one_of_the_training_data(make_predictor, image):
    predictor = make_predictor()
    data = TrainingData.from_images([measure_image(image, predictor.saved.preprocessing, {"liver": 900.0})])
    model = quality_model(volume={"liver": UsualRange(median=7.0, below=0.1, above=0.1)})
    flags = with_quality(predictor, model, data).assess(image).quality.flags
    assert [flag.kind for flag in flags] == [FlagKind.VOLUME]


def test_intervals_do_not_hold_for_a_case_that_is_unlike_the_training_data_only(make_predictor, image):
    predictor = make_predictor()
    data = TrainingData.from_images([measure_image(image, predictor.saved.preprocessing, {"liver": 900.0})])
    found = with_quality(predictor, quality_model(), data).assess(image).quality
    assert [flag.kind for flag in found.flags] == [FlagKind.VOLUME]
    estimate = found.label("liver")
    assert (estimate.dice_low, estimate.volume_low_ml, estimate.volume_high_ml) == (0.0, None, None)
    assert found.coverage is None


def test_the_quality_model_comes_from_the_model_folder(make_predictor, image, tmp_path):
    made, model = make_predictor(), quality_model()
    save_model(tmp_path / "model", made.model, made.saved, made.labels, finish=model.write)
    loaded = medseg.load(tmp_path / "model", device="cpu")
    assert loaded.quality == model
    assert loaded.with_settings(overlap=0.25).quality == model
    assert PredictorEnsemble([loaded, loaded]).quality is None


def test_sums_over_probabilities_become_properties():
    one = OutputEvidence("liver", 5, 2.0, 2.5, 1.5, 0.8, 1.0, 0.7)
    absent = OutputEvidence("spleen", 7, 0.0, 0.5, 0.0, 0.0, 0.2, 0.1)
    found = evidence_features(CaseEvidence((one, absent)))
    assert found["expected soft Dice"] == pytest.approx({"liver": 3 / 4.5, "spleen": 0.0}, rel=1e-5)
    assert found["confidence"] == {"liver": 0.75}
    assert found["uncertain band"] == {"liver": 0.5}
    assert evidence_features(None) == {}
