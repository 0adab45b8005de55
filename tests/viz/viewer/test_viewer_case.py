from __future__ import annotations

import base64
import gzip
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.labels.label_table import Labels
from medseg.viz.viewer.viewer_case import ViewerCase
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (12, 10, 8)
GRID = Grid.from_spacing(SHAPE, (1, 1, 2))
IMAGE = Volume(np.random.default_rng(0).integers(-1000, 1000, (1, *SHAPE)).astype(np.int16), GRID)
PREDICTION = np.zeros((1, *SHAPE), np.uint8)
PREDICTION[0, 2:6, 3:7, 5] = 3
PREDICTION[0, 8:10, 3:7, 5] = 9
REFERENCE = np.roll(PREDICTION, 1, axis=1)
REFERENCE[0, 8:10, 6, 5] = 3
MAPS = {"prediction": Volume(PREDICTION, GRID, "label"), "reference": Volume(REFERENCE, GRID, "label")}


def voxels(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text))).dataobj)


def test_labels_are_numbered_and_have_names_and_volumes() -> None:
    content = ViewerCase("a", IMAGE, MAPS, Labels.from_names({"liver": 3})).payload(10**6)
    assert [(one["value"], one["name"]) for one in content["labels"]] == [(3, "liver"), (9, "label_9")]
    assert content["labels"][0]["ml"]["prediction"] == pytest.approx(16 * 2 / 1000)
    np.testing.assert_array_equal(
        voxels(content["maps"][0]["data"]), np.choose(PREDICTION[0] // 3, [0, 1, 0, 2])
    )


def test_many_large_values_are_numbered() -> None:
    data = np.zeros((1, *SHAPE), np.int32)
    data.ravel()[:300] = np.arange(300) * 1000
    content = ViewerCase("a", IMAGE, {"labels": Volume(data, GRID, "label")}).payload(10**6)
    np.testing.assert_array_equal(voxels(content["maps"][0]["data"]), data[0] // 1000)


def test_the_difference_has_a_code_for_each_disagreement() -> None:
    content = ViewerCase("a", IMAGE, MAPS).payload(10**6)
    p, r = PREDICTION[0], REFERENCE[0]
    codes = voxels(content["difference"])
    assert set(np.unique(codes)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(codes == 1, (p == r) & (p > 0))
    np.testing.assert_array_equal(codes == 2, (p > 0) & (r == 0))
    np.testing.assert_array_equal(codes == 3, (p == 0) & (r > 0))
    np.testing.assert_array_equal(codes == 4, (p > 0) & (r > 0) & (p != r))
    assert ViewerCase("a", IMAGE, {"labels": MAPS["prediction"]}).payload(10**6)["difference"] is None


def test_it_opens_inside_a_label() -> None:
    content = ViewerCase("a", IMAGE, MAPS).payload(10**6)
    x, y, z = content["focus"]
    assert PREDICTION[0, round(x), round(y), round(z / 2)] > 0
    assert ViewerCase("a", IMAGE).payload(10**6)["focus"] == [6, 5, 8]


def test_ct_has_the_windows_of_ct_and_other_images_one() -> None:
    names = [one["name"] for one in ViewerCase("a", IMAGE).payload(10**6)["channels"][0]["windows"]]
    assert names == ["automatic", "soft tissue", "lung", "bone", "brain"]
    mr = IMAGE.with_data(np.abs(IMAGE.data))
    (window,) = ViewerCase("a", mr, window=(100, 50)).payload(10**6)["channels"][0]["windows"]
    assert (window["low"], window["high"]) == (75, 125)


def test_a_page_that_is_too_small_states_the_reduction() -> None:
    rng = np.random.default_rng(0)
    whole = Volume(
        rng.integers(-1000, 1000, (1, 64, 64, 64)).astype(np.int16), Grid.from_spacing((64, 64, 64))
    )
    content = ViewerCase("a", whole).payload(200_000)
    assert not content["exact"]
    assert "each voxel shown is the mean of 2 × 2 × 1 voxels of the image (64 × 64 × 64)" in content["note"]
    assert len(content["channels"][0]["data"]) < 200_000
    fractions = whole.with_data(whole.data / np.float32(7))
    assert "rounded to 1/65,535" in ViewerCase("a", fractions).payload(200_000)["note"]
    assert ViewerCase("a", whole).payload(10**7)["note"] == ""


def test_mistakes_are_reported() -> None:
    with pytest.raises(ConfigError, match="unknown window"):
        ViewerCase("a", IMAGE, window="sofft tissue").payload(10**6)
    with pytest.raises(DataError, match="one channel of integers"):
        ViewerCase("a", IMAGE, {"labels": IMAGE.with_data(IMAGE.data / 7)}).payload(10**6)


def test_overlays_are_rounded_to_255_steps_of_their_range_and_have_one_entry_per_channel() -> None:
    random = np.random.default_rng(0)
    shares = IMAGE.with_data(random.random((2, *SHAPE)).astype(np.float32))
    wide = IMAGE.with_data(random.normal(0, 9, (1, *SHAPE)).astype(np.float32))
    wide.data[0, 0, 0, 0] = np.nan
    content = ViewerCase("a", IMAGE, overlays={"probabilities": shares, "score": wide}).payload(10**6)
    first, second, score = content["overlays"]
    assert [first["name"], second["name"], score["name"]] == ["probabilities 1", "probabilities 2", "score"]
    assert (second["low"], second["high"]) == (0.0, 1.0)
    known = np.nan_to_num(wide.data[0])
    assert (score["low"], score["high"]) == (known.min(), known.max())
    np.testing.assert_allclose(voxels(second["data"]), shares.data[1], atol=0.51 / 255)
    np.testing.assert_allclose(voxels(score["data"]), known, atol=0.51 / 255 * np.ptp(known))


def test_a_constant_overlay_keeps_its_number() -> None:
    half = IMAGE.with_data(np.full((1, *SHAPE), 0.5, np.float32))
    (overlay,) = ViewerCase("a", IMAGE, overlays={"half": half}).payload(10**6)["overlays"]
    np.testing.assert_allclose(voxels(overlay["data"]), 0.5)


def test_overlays_of_another_grid_are_placed_on_the_image() -> None:
    coarse = Grid.from_spacing((6, 5, 8), (2, 2, 2))
    overlay = Volume(np.ones((1, 6, 5, 8), np.float32), coarse)
    (found,) = ViewerCase("a", IMAGE, overlays={"one": overlay}).payload(10**6)["overlays"]
    assert voxels(found["data"]).shape == SHAPE
