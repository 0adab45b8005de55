"""Calibrated probabilities and their entropy: what the files hold, whatever the bands, and labels that stay the same."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import ModelError
from medseg.inference.predictor import Predictor
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.inference.sliding.memory_plan import MemoryPlan
from medseg.io.probability_files import ProbabilityFile
from medseg.model_folder.folder import load_model, save_model
from medseg.volumes.volume import Volume
from tests.helpers.predictors import LABELS

REGIONS = LABELS.with_regions({"organs": [5, 7, 300], "tumour": [300]})


@pytest.fixture(scope="module")
def image() -> Volume:
    """A small CT of anisotropic voxels."""
    return phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0]


def calibrated(predictor: Predictor, *temperatures: float) -> Predictor:
    """Return a predictor with temperatures."""
    saved = predictor.saved.replace(calibration={"temperatures": list(temperatures), "cases": 10})
    return Predictor(predictor.model, saved, predictor.labels, device="cpu")


def files(predictor, image, folder, **options):
    """Return label map, probabilities and uncertainty as they are in their files."""
    p, u = folder / "p.nii", folder / "u.nii"
    labels = predictor.run(predictor.prepare(image), probabilities=p, uncertainty=u, **options)
    return labels.data[0], nib.load(p).get_fdata(), nib.load(u).get_fdata()


def entropy_of(p: np.ndarray, regions: bool) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        if regions:
            parts = np.nan_to_num(-p * np.log2(p)) + np.nan_to_num(-(1 - p) * np.log2(1 - p))
            return parts.max(-1)
        return np.nan_to_num(-p * np.log(p)).sum(-1) / np.log(p.shape[-1])


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_map_is_the_entropy_of_the_probabilities(labels, bands, make_predictor, image, tmp_path):
    predictor = make_predictor(labels=labels, spacing=(26.0, 13.0, 30.0))
    plan = MemoryPlan(bands, 1, torch.float32, torch.device("cpu"), 0)
    object.__setattr__(predictor.engine, "plan", lambda *args, **options: plan)
    found, p, u = files(predictor, image, tmp_path)
    assert u.shape == image.grid.shape
    np.testing.assert_allclose(u, entropy_of(p, bool(labels.regions)), atol=5e-4)
    assert u.max() > 0.5
    assert np.array_equal(found, predictor(image).data[0])
    np.testing.assert_allclose(nib.load(tmp_path / "u.nii").affine, image.grid.affine, atol=1e-4)


def test_only_the_map_is_written_if_only_the_map_is_wanted(make_predictor, image, tmp_path):
    predictor = make_predictor()
    _, _, both = files(predictor, image, tmp_path)
    predictor.run(predictor.prepare(image), uncertainty=tmp_path / "alone.nii")
    assert np.array_equal(nib.load(tmp_path / "alone.nii").get_fdata(), both)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.nii", "p.nii", "u.nii"]


@pytest.mark.parametrize(
    ("labels", "temperatures"),
    [(LABELS, (2.0,)), (LABELS, (0.5, 2.0, 1.0, 3.0)), (REGIONS, (2.0,)), (REGIONS, (2.0, 0.5))],
)
def test_temperatures_change_probabilities_and_no_label(
    labels, temperatures, make_predictor, image, tmp_path
):
    plain = make_predictor(labels=labels)
    hot = calibrated(plain, *temperatures)
    before, p, _ = files(plain, image, tmp_path)
    after, q, u = files(hot, image, tmp_path)
    assert np.array_equal(before, after)
    assert not np.allclose(p, q, atol=1e-2)
    np.testing.assert_allclose(u, entropy_of(q, bool(labels.regions)), atol=5e-4)
    if len(temperatures) == 1 and not labels.regions:
        powers = p ** (1 / temperatures[0])
        np.testing.assert_allclose(q, powers / powers.sum(-1, keepdims=True), atol=5e-3)
    comment = nib.load(tmp_path / "p.nii").header.extensions[0].get_content()
    assert json.loads(comment)["calibrated"] is True
    again, r, _ = files(hot.with_settings(calibrate=False), image, tmp_path)
    assert np.array_equal(r, p)
    assert np.array_equal(again, before)


def test_an_ensemble_of_folders_averages_calibrated_probabilities(make_predictor, image, tmp_path):
    one, other = calibrated(make_predictor(), 3.0), make_predictor(dims=2)
    _, p, _ = files(one, image, tmp_path)
    _, q, _ = files(other, image, tmp_path)
    labels, mean, u = files(PredictorEnsemble([one, other]), image, tmp_path)
    np.testing.assert_allclose(mean, (p + q) / 2, atol=1e-4)
    np.testing.assert_allclose(u, entropy_of(mean, False), atol=5e-4)
    assert np.array_equal(labels, LABELS.to_values(mean.argmax(-1)))
    comment = nib.load(tmp_path / "p.nii").header.extensions[0].get_content()
    assert json.loads(comment)["calibrated"] is False


def test_the_pages_of_the_map_count_as_memory(make_predictor, image, tmp_path, monkeypatch):
    predictor, counted = make_predictor(), []
    original = type(predictor.engine).plan

    def plan(engine, prepared, *, files=(), measure=False):
        found = original(engine, prepared, files=files, measure=measure)
        counted.append((len(files), found.peak - original(engine, prepared).peak))
        return found

    monkeypatch.setattr(type(predictor.engine), "plan", plan)
    monkeypatch.setattr(ProbabilityFile, "resident_bytes", lambda file, axis: 1 << 30)
    files(predictor, image, tmp_path)
    ((number, more),) = counted
    assert number == 2
    assert more == pytest.approx(2 << 30, rel=0.05)


def test_temperatures_are_kept_in_the_model_folder(make_predictor, tmp_path):
    predictor = calibrated(make_predictor(), 1.5)
    save_model(tmp_path / "model", predictor.model, predictor.saved, LABELS)
    _, saved, _ = load_model(tmp_path / "model")
    assert saved.temperatures == (1.5,)
    plain = make_predictor().saved
    assert plain.temperatures == ()
    assert medseg.load(tmp_path / "model", device="cpu", calibrate=False).saved.temperatures == ()


def test_too_few_temperatures_are_refused(make_predictor):
    with pytest.raises(ModelError, match="found 2 temperatures, expected 1 or 4"):
        calibrated(make_predictor(), 1.0, 2.0)
