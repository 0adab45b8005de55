"""Case evidence: sums of probabilities equal those of the whole image, whatever its bands, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.data.datasets.phantom import phantom_case
from medseg.inference.predictor import Predictor
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.inference.sliding.memory_plan import MemoryPlan
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.windows import SlidingWindow
from medseg.inference.uncertainty.case_evidence import BAND, CaseEvidence, EvidenceSums
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.predictors import LABELS

REGIONS = LABELS.with_regions({"organs": [5, 7, 300], "tumour": [300]})


@pytest.fixture(scope="module")
def image() -> Volume:
    """A small CT of anisotropic voxels."""
    return phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0]


def by_definition(predictor: Predictor, image: Volume) -> dict[str, list[float]]:
    """Return the sums of each output from the logits of the whole image, in float64."""
    prepared = predictor.prepare(image)
    logits = np.moveaxis(
        predictor.logits(torch.from_numpy(prepared.geometry.image.data)).double().numpy(), 0, -1
    )
    regions = predictor.labels.regions
    if regions:
        p = 1 / (1 + np.exp(-logits))
        inside = p > 0.5
        entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    else:
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        inside = p == p.max(-1, keepdims=True)
        entropy = -(p * np.log(p)).sum(-1, keepdims=True) / np.log(p.shape[-1])
    band = (p > BAND[0]) & (p < BAND[1])
    ml = prepared.geometry.grid.voxel_volume / 1000
    parts = np.stack([inside, p, p * inside, entropy * inside, band, entropy * band])
    sums = parts.sum((1, 2, 3)).T * ml
    return dict(
        zip(
            [one.name for one in predictor.labels.evaluated],
            sums[-len(predictor.labels.evaluated) :],
            strict=True,
        )
    )


def evidence_in_bands(predictor: Predictor, image: Volume, bands: int) -> tuple[CaseEvidence, np.ndarray]:
    """Return evidence and label map of an image predicted in some bands."""
    prepared, sums = predictor.prepare(image), EvidenceSums(predictor.labels)
    plan = MemoryPlan(bands, 1, torch.float32, torch.device("cpu"), 0)
    object.__setattr__(predictor.engine, "plan", lambda *args, **options: plan)
    labels = predictor.run(prepared, evidence=sums)
    return sums.evidence(), labels.data


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_sums_are_those_of_the_whole_image(labels, bands, make_predictor, image):
    predictor = make_predictor(labels=labels, spacing=(26.0, 13.0, 30.0))
    expected = by_definition(predictor, image)
    before = predictor(image).data
    found, after = evidence_in_bands(predictor, image, bands)
    assert np.array_equal(before, after)
    assert [one.name for one in found.outputs] == list(expected)
    for one in found.outputs:
        sums = [
            one.predicted,
            one.probability,
            one.probability_inside,
            one.entropy_inside,
            one.band,
            one.entropy_band,
        ]
        np.testing.assert_allclose(sums, expected[one.name], rtol=1e-5)
    assert sum(one.predicted for one in found.outputs) > 0


@pytest.mark.parametrize(("sources", "targets"), [(10, 23), (23, 10), (40, 5), (3, 30), (7, 7)])
@pytest.mark.parametrize("bands", [1, 2, 4])
def test_bands_own_every_column_once_and_interpolate_as_before(sources, targets, bands):
    from medseg.inference.sliding.prepared_prediction import PreparedPrediction
    from medseg.inference.sliding.slices import InMemoryImage
    from medseg.volumes.resampling import AxisMap

    axis = LinearWeights.from_axis_map(AxisMap.resize(sources, targets))
    prepared = PreparedPrediction(InMemoryImage(torch.zeros(1, 1, sources, 1)), None, (axis,) * 3)  # type: ignore[arg-type]
    found = prepared.bands(bands, SlidingWindow((1, 3, 1)))
    owned = [column for band in found for column in range(band.own.start, band.own.stop)]
    assert owned == list(range(sources))
    for band in found:
        assert band.columns.start <= band.own.start <= band.own.stop <= band.columns.stop
        assert torch.equal(band.axis.lower + band.columns.start, axis.lower[band.targets])
        assert torch.equal(band.axis.upper + band.columns.start, axis.upper[band.targets])
        assert int(band.axis.upper.max()) < band.columns.stop - band.columns.start


def test_a_prediction_that_begins_again_counts_nothing_twice(make_predictor, image):
    predictor = make_predictor()
    once, twice = EvidenceSums(predictor.labels), EvidenceSums(predictor.labels)
    predictor.run(predictor.prepare(image), evidence=once)
    attempts = []
    original = predictor.engine.network.volumetric

    def fails_late(batch):
        attempts.append(len(batch))
        if len(attempts) == 3:
            raise MemoryError
        return original(batch)

    predictor.engine.network.volumetric = fails_late
    plan = MemoryPlan(1, 2, torch.float32, torch.device("cpu"), 0)
    object.__setattr__(predictor.engine, "plan", lambda *args, **options: plan)
    notes = []
    predictor.run(predictor.prepare(image), evidence=twice, note=notes.append)
    assert notes
    for one, other in zip(once.evidence().outputs, twice.evidence().outputs, strict=True):
        assert one.predicted == other.predicted
        assert one.probability == pytest.approx(other.probability, rel=1e-5)


def test_an_ensemble_adds_up_its_mean_probabilities_on_the_grid_of_the_file(make_predictor, image, tmp_path):
    import nibabel as nib

    one, other = make_predictor(spacing=(26.0, 13.0, 30.0)), make_predictor(dims=2)
    ensemble, sums = PredictorEnsemble([one, other]), EvidenceSums(LABELS)
    labels = ensemble.run(ensemble.prepare(image), probabilities=tmp_path / "p.nii", evidence=sums)
    mean = nib.load(tmp_path / "p.nii").get_fdata()
    ml = image.grid.voxel_volume / 1000
    for index, output in enumerate(sums.evidence().outputs, 1):
        inside = labels.data[0] == output.value
        assert output.predicted == pytest.approx(inside.sum() * ml)
        assert output.probability == pytest.approx(mean[..., index].sum() * ml, rel=1e-3)
        assert output.probability_inside == pytest.approx(mean[..., index][inside].sum() * ml, rel=1e-3)


def test_air_that_is_not_predicted_is_certain(make_predictor):
    predictor = make_predictor(method="ct", crop=False, overlap=0.0)
    air = Volume(np.full((1, 24, 16, 8), -1000.0, np.float32), Grid.from_spacing((24, 16, 8), (1, 1, 1)))
    sums = EvidenceSums(predictor.labels)
    predictor.run(predictor.prepare(air), evidence=sums)
    assert [one.probability for one in sums.evidence().outputs] == pytest.approx([0, 0, 0], abs=1e-6)
    assert sums.evidence().mean_entropy is None


def test_the_expected_dice_is_the_mean_dice_of_references_drawn_from_the_probabilities():
    """Independent voxels: references are drawn from the probabilities many times, and their Dice is averaged."""
    rng = np.random.default_rng(0)
    p = torch.from_numpy(1 / (1 + np.exp(-3 * rng.normal(size=2000)))).float()
    sums = EvidenceSums(Labels.from_names({"background": 0, "liver": 1}))
    sums.begin_grid(1.0)
    sums.add_probabilities(torch.stack([1 - p, p], -1))
    (found,) = sums.evidence().outputs
    inside, drawn = p.numpy() > 0.5, rng.random((4000, 2000)) < p.numpy()
    dice = 2 * (drawn & inside).sum(1) / (inside.sum() + drawn.sum(1))
    assert found.expected_dice == pytest.approx(dice.mean(), abs=1e-3)
