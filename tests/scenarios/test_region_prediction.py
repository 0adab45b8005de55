"""Overlapping regions: sigmoids instead of the argmax, from the logits to the label map on the file's grid."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import medseg
from medseg.errors import DataError, ModelError
from medseg.inference.estimate import estimate_image
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.inference.sliding.labelling import Argmax, FiniteCheck, RegionThreshold, label_rule
from medseg.inference.sliding.to_file_grid import LinearWeights, export_labels
from medseg.model_folder.folder import load_model, save_model
from medseg.volumes.resampling import AxisMap
from tests.helpers.sliding import blocks_of, interpolated, run_in_bands, smooth_logits
from tests.helpers.volumes import small_phantom

pytestmark = pytest.mark.slow

LABELS = medseg.Labels.from_names({"background": 0, "liver": 5, "spleen": 7, "tumour": 300})
REGIONS = LABELS.with_regions({"organs": (5, 7, 300), "spleen part": (7, 300), "tumour": (300,)})


def written_one_after_the_other(logits, values):
    """Return the label map by its definition: 0, then region by region where the sigmoid exceeds one half."""
    labels = np.zeros(logits.shape[:-1], int)
    for region, value in enumerate(values):
        labels[(torch.sigmoid(logits[..., region]) > 0.5).numpy()] = value
    return labels


def restored(logits, maps, rule, sizes=(3,)):
    out = np.full([axis_map.n_out for axis_map in maps], 255, np.int32)
    export_labels(blocks_of(logits, sizes), [LinearWeights.from_axis_map(m) for m in maps], rule, out)
    return out


@st.composite
def cases(draw):
    source = tuple(draw(st.integers(1, 9)) for _ in range(3))
    target = tuple(draw(st.integers(1, 14)) for _ in range(3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    values = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    return source, target, values, sizes, draw(st.sampled_from((0, 1.5)))


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 100))
def test_the_result_equals_interpolation_of_all_regions(case, seed):
    source, target, values, sizes, sigma = case
    logits = smooth_logits(source, len(values), seed, sigma)
    maps = [AxisMap.resize(n_in, n_out) for n_in, n_out in zip(source, target, strict=True)]
    dense = logits
    for axis in (0, 2, 1):
        dense = interpolated(dense, axis, maps[axis])
    out = restored(logits, maps, RegionThreshold(np.array([0, *values])), sizes)
    np.testing.assert_array_equal(out, written_one_after_the_other(dense, values))


def test_between_two_regions_of_one_output_value_there_may_be_background():
    logits = torch.tensor([[2.0, -1.0], [-4.0, 1.0]])[:, None, None]
    maps = [AxisMap.resize(2, 8), AxisMap.resize(1, 1), AxisMap.resize(1, 1)]
    out = restored(logits, maps, RegionThreshold(np.array([0, 4, 4])))[:, 0, 0]
    dense = interpolated(logits, 0, maps[0])[:, 0, 0]
    assert out.tolist() == written_one_after_the_other(dense, [4, 4]).tolist()
    assert out[0] == out[-1] == 4
    assert 0 in out


@pytest.mark.parametrize("regions", [1, 2, 130])
def test_the_class_is_the_last_region_present(regions):
    generator = torch.Generator().manual_seed(regions)
    logits = torch.randn((9, 7, 5, regions), generator=generator) - 1.5
    values = np.arange(1, regions + 1)
    rule = RegionThreshold(np.array([0, *values]))
    expected = written_one_after_the_other(logits, values)
    np.testing.assert_array_equal(rule.values[rule.classes(logits, FiniteCheck())], expected)
    assert len(np.unique(expected)) > regions / 3


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused(wrong):
    logits = torch.zeros((2, 2, 2, 3))
    logits[1, 1, 0, 1] = wrong
    with pytest.raises(ModelError, match="found NaN or infinity"):
        restored(logits, [AxisMap.resize(2, 2)] * 3, RegionThreshold(np.arange(4)))


def test_the_rule_follows_from_the_labels():
    assert label_rule(REGIONS).values.tolist() == [0, 5, 7, 300]
    assert label_rule(REGIONS).values.dtype == np.uint16
    assert isinstance(label_rule(medseg.Labels.from_names({"liver": 5})), Argmax)


@pytest.mark.parametrize("spacing", [None, (26.0, 19.0, 30.0)])
def test_a_predictor_writes_regions_on_the_files_grid(make_predictor, tmp_path, spacing):
    predictor = make_predictor(spacing=spacing, labels=REGIONS)
    image = small_phantom().reoriented("PLI")
    labels = predictor.run(predictor.prepare(image), probabilities=tmp_path / "p.nii")
    assert labels.data.dtype == np.uint16
    assert set(np.unique(labels.data)) == {0, 5, 7, 300}
    assert np.array_equal(predictor(image).data, labels.data)
    file = nib.load(tmp_path / "p.nii")
    probabilities = file.get_fdata()
    assert probabilities.shape == (*image.grid.shape, 3)
    assert probabilities.sum(-1).max() > 1.2  # regions overlap
    expected = np.zeros(image.grid.shape)
    for region, value in enumerate((5, 7, 300)):
        expected[probabilities[..., region] > 0.5] = value
    assert (expected == labels.data[0]).mean() > 0.999  # within 1/65535 of a half
    (extension,) = file.header.extensions
    assert extension.get_content() == b'{"volumes": ["organs", "spleen part", "tumour"], "calibrated": false}'
    if spacing is None:
        prepared = predictor.prepare(image).image
        logits = predictor.logits(prepared.slices(0, prepared.shape[1]).movedim(1, -1))
        upright = medseg.Volume(np.moveaxis(probabilities, -1, 0), image.grid).reoriented("RAS").data
        np.testing.assert_allclose(upright, torch.sigmoid(logits).numpy(), atol=2e-5)


def test_neither_bands_nor_batches_change_regions_and_float16_sums_hardly_do(make_predictor):
    predictor = make_predictor(labels=REGIONS, spacing=(26.0, 13.0, 30.0))
    image = small_phantom()
    expected = predictor(image).data
    assert len(np.unique(expected)) == 4
    for bands, batch_size in ((2, 1), (14, 3)):
        assert np.array_equal(run_in_bands(predictor, image, bands, batch_size=batch_size), expected)
    assert (run_in_bands(predictor, image, 2, sums=torch.float16) == expected).mean() > 0.99


def test_outside_the_crop_and_in_empty_windows_no_region_is_present(make_predictor, tmp_path, make_volume):
    predictor = make_predictor(labels=REGIONS)
    image = small_phantom().padded((2, 0, 3), (1, 4, 0))
    labels = predictor.run(predictor.prepare(image), probabilities=tmp_path / "p.nii")
    probabilities = nib.load(tmp_path / "p.nii").get_fdata()
    for corner in itertools.product((0, -1), (-1,), (0,)):
        assert not probabilities[corner].any()
        assert not labels.data[0][corner]
    predictor = make_predictor(labels=REGIONS, method="none", window=(4, 4, 4), overlap=0, crop=False)

    class Everywhere(torch.nn.Module):
        def forward(self, batch):
            return torch.ones_like(batch).repeat(1, 3, 1, 1, 1)

    predictor.network.volumetric = Everywhere()
    data = np.zeros((1, 12, 12, 12), np.float32)
    data[:, 5, 6, 7] = 3  # in one window of 27
    found = predictor(make_volume((12, 12, 12)).with_data(data)).data[0]
    assert (found[4:8, 4:8, 4:8] == 300).all()
    assert (found == 300).sum() == 64
    assert np.count_nonzero(found) == 64
    nothing = predictor(make_volume((12, 12, 12)).with_data(0 * data)).data
    assert not nothing.any()


def test_an_ensemble_averages_the_probabilities_of_each_region(make_predictor, tmp_path):
    image = small_phantom().reoriented("LIP")
    predictors = [make_predictor(labels=REGIONS, spacing=s) for s in (None, (26.0, 19.0, 30.0))]
    predictors.append(make_predictor(2, labels=REGIONS))
    probabilities = []
    for index, predictor in enumerate(predictors):
        predictor.run(predictor.prepare(image), probabilities=tmp_path / f"{index}.nii")
        probabilities.append(nib.load(tmp_path / f"{index}.nii").get_fdata())
    together = PredictorEnsemble(predictors)
    labels = together.run(together.prepare(image), probabilities=tmp_path / "mean.nii")
    mean = np.mean(probabilities, axis=0)
    np.testing.assert_allclose(nib.load(tmp_path / "mean.nii").get_fdata(), mean, atol=2e-5)
    expected = np.zeros(image.grid.shape)
    for region, value in enumerate((5, 7, 300)):
        expected[mean[..., region] > 0.5] = value
    assert (labels.data[0] == expected).mean() > 0.999
    assert len(np.unique(expected)) > 2
    classes = make_predictor()
    with pytest.raises(ModelError, match=r"labels: found .*expected .*organs 5\+7\+300 as 5"):
        PredictorEnsemble([predictors[0], classes])


def test_a_model_folder_holds_regions_and_its_card_lists_them(make_predictor, tmp_path):
    predictor = make_predictor(labels=REGIONS)
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    model, _, labels = load_model(tmp_path / "model")
    assert labels == REGIONS
    assert model.num_classes == 3
    again = medseg.load(tmp_path / "model", device="cpu")
    image = small_phantom()
    assert np.array_equal(again(image).data, predictor(image).data)
    assert repr(again) == "Predictor(toy: unet_3d, 1 channel(s) -> 3 region(s), window 8x8x8, cpu, float32)"
    card = (tmp_path / "model" / "README.md").read_text()
    assert (
        "The model predicts regions: organs (5, 7, 300) written as 5; spleen part (7, 300) written as 7; tumour (300)"
        in card
    )


def labels_in_parts():
    """Values along x with gaps: the parts of the foreground and of each region differ."""
    rows = [7, 7, 5, 5, 5, 0, 300, 300, 300, 0, 5, 7, 0, 5]
    data = np.array(rows, np.uint16).reshape(1, -1, 1, 1).repeat(2, axis=2)
    return medseg.Volume(data, medseg.Grid.from_spacing(data.shape[1:]), "label")


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"keep_largest_foreground": True}, [7, 7, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ({"keep_largest": ["organs"]}, [7, 7, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ({"keep_largest": ["spleen part"]}, [0, 0, 5, 5, 5, 0, 300, 300, 300, 0, 5, 0, 0, 5]),
        ({"keep_largest": ["liver"]}, [7, 7, 5, 5, 5, 0, 300, 300, 300, 0, 0, 7, 0, 0]),
        (
            {"keep_largest_foreground": True, "keep_largest": ["spleen part"]},
            [7, 7, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ({"keep_largest": ["spleen part", "organs"]}, [0, 0, 5, 5, 5, 0, 300, 300, 300, 0, 0, 0, 0, 0]),
        ({}, [7, 7, 5, 5, 5, 0, 300, 300, 300, 0, 5, 7, 0, 5]),
    ],
)
def test_post_processing_takes_the_foreground_then_labels_and_regions_in_turn(make_predictor, settings, left):
    predictor = make_predictor(labels=REGIONS, **settings)
    assert predictor.post_processed(labels_in_parts()).data[0, :, 0, 0].tolist() == left


def test_an_unknown_name_in_post_processing_is_refused(make_predictor):
    with pytest.raises(DataError, match=r"unknown label 'organ'\. Did you mean 'organs'"):
        make_predictor(labels=REGIONS, keep_largest=["organ"])


def test_instances_are_refused(make_predictor):
    with pytest.raises(ModelError, match="toy: predicts regions, which may overlap, not instances"):
        make_predictor(labels=REGIONS).instances(small_phantom())


def test_an_estimate_of_regions(make_predictor):
    found = estimate_image(make_predictor(labels=REGIONS), small_phantom())
    assert found.windows > 0
    assert found.seconds > 0
