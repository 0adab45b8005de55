"""Probabilities on the file's own grid, and ensembles computed from them."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import DataError, ModelError
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.io.probability_files import writing_probabilities

OUTSIDE = {"background": 1, "liver": 0, "spleen": 0}


def written(predictor, image, path):
    labels = predictor.run(predictor.prepare(image), probabilities=path)
    return labels, nib.load(path)


@pytest.mark.parametrize("spacing", [None, (26.0, 19.0, 30.0)])
@pytest.mark.parametrize("axcodes", ["RAS", "PLI", "SAR"])
def test_probabilities_are_the_softmax_of_the_logits_on_the_files_grid(
    make_predictor, tmp_path, spacing, axcodes
):
    predictor = make_predictor(spacing=spacing)
    image = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0].reoriented(axcodes)
    labels, file = written(predictor, image, tmp_path / "p.nii")
    probabilities = file.get_fdata()
    assert probabilities.shape == (*image.grid.shape, 4)
    np.testing.assert_allclose(file.affine, image.grid.affine, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-4)
    assert np.array_equal(labels.data, predictor(image).data)
    values = predictor.labels.to_values(probabilities.argmax(-1))
    assert (values == labels.data[0]).mean() > 0.999  # shares within 1/65535 of each other
    if spacing is None:
        prepared = predictor.prepare(image).image
        logits = predictor.logits(prepared.slices(0, prepared.shape[1]).movedim(1, -1))
        expected = torch.softmax(logits, 0).movedim(0, -1).numpy()
        upright = medseg.Volume(np.moveaxis(probabilities, -1, 0), image.grid).reoriented("RAS").data
        np.testing.assert_allclose(np.moveaxis(upright, 0, -1), expected, atol=2e-5)


def test_voxels_outside_the_crop_are_background(make_predictor, tmp_path):
    image = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0].padded((2, 0, 3), (1, 4, 0))
    _, file = written(make_predictor(), image, tmp_path / "p.nii")
    probabilities = file.get_fdata()
    for corner in itertools.product((0, -1), (0, -1), (0,)):
        np.testing.assert_allclose(probabilities[corner], [1, 0, 0, 0], atol=1e-6)


def test_an_ensemble_returns_the_mean_of_the_probabilities(make_predictor, tmp_path):
    image = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0].reoriented("LIP")
    predictors = [make_predictor(), make_predictor(spacing=(26.0, 19.0, 30.0)), make_predictor(2)]
    probabilities = [
        written(predictor, image, tmp_path / f"{i}.nii")[1].get_fdata()
        for i, predictor in enumerate(predictors)
    ]
    labels = PredictorEnsemble(predictors)(image)
    assert labels.grid.affine.tobytes() == image.grid.affine.tobytes()
    expected = predictors[0].labels.to_values(np.mean(probabilities, axis=0).argmax(-1))
    assert (labels.data[0] == expected).mean() > 0.999
    assert len(np.unique(expected)) > 2
    together = PredictorEnsemble(predictors)
    again = together.run(together.prepare(image), probabilities=tmp_path / "mean.nii")
    assert np.array_equal(again.data, labels.data)
    np.testing.assert_allclose(
        nib.load(tmp_path / "mean.nii").get_fdata(), np.mean(probabilities, axis=0), atol=2e-5
    )


def test_models_of_other_labels_are_refused(make_predictor):
    other = medseg.Labels.from_names({"background": 0, "liver": 5, "spleen": 8, "tumour": 300})
    with pytest.raises(ModelError, match=r"labels: found .*spleen 8.*expected .*spleen 7"):
        PredictorEnsemble([make_predictor(), make_predictor(labels=other)])


def test_a_file_appears_only_when_it_is_complete(make_volume, tmp_path):
    with pytest.raises(RuntimeError), writing_probabilities(tmp_path / "p.nii", make_volume(), OUTSIDE):  # noqa: PT012
        assert not (tmp_path / "p.nii").exists()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(DataError, match=r"found suffix '\.gz', expected \.nii"),
        writing_probabilities(tmp_path / "p.nii.gz", make_volume(), OUTSIDE),
    ):
        pass
