"""What a quality model of few cases cannot say is named, with the numbers of cases."""

from __future__ import annotations

from medseg.inference.quality.fit_quality import fit_quality
from medseg.inference.quality.quality_model import QualityModel, VolumeRatios
from medseg.inference.quality.too_few_cases import too_few_cases
from tests.helpers.reference_cases import reference_cases


def test_enough_cases_are_not_mentioned():
    assert too_few_cases(_without_cyst(60)) is None


def _without_cyst(number: int) -> QualityModel:
    model = fit_quality(reference_cases(number))
    return model.replace(volumes={"liver": model.volumes["liver"].to_plain()})


def test_what_is_missing_is_named_when_the_fit_leaves_it_out():
    for number, words in (
        (23, {"learned flags (24 needed)"}),
        (19, {"learned flags (24 needed)", "the expected Dice of liver", "20 needed"}),
        (
            18,
            {
                "learned flags",
                "expected Dice",
                "the volume interval of liver (predicted in 18 cases)",
                "(19 needed)",
            },
        ),
    ):
        model = _without_cyst(number)
        sentence = too_few_cases(model) or ""
        assert sentence.startswith(f"quality model: too few cases ({number}) for ")
        assert all(word in sentence for word in words)
        assert ("learned flags" in sentence) == (model.threshold is None)
        assert ("expected Dice of liver" in sentence) == ("liver" not in model.dice)
        assert ("interval of liver" in sentence) == (model.volumes["liver"].high is None)


def test_many_labels_are_counted():
    volumes = {f"vertebra {number}": VolumeRatios(low=0.5, high=2.0, cases=30) for number in range(24)}
    sentence = too_few_cases(QualityModel(cases=30, threshold=1.5, volumes=volumes))
    assert sentence is not None
    assert "vertebra 2 (predicted in 30 cases), 21 more labels (20 needed)" in sentence
    assert "vertebra 3 " not in sentence
