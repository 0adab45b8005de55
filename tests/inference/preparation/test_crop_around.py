"""Models that see the part of an image around labels of a first stage, against the same model on an image cropped by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

import medseg
from medseg.errors import ConfigError, DataError, ModelError
from medseg.inference.estimate import estimate_image
from medseg.inference.predictor import Predictor
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model

LABELS = medseg.Labels.from_names({"background": 0, "vessel": 3})
ORGANS = medseg.Labels.from_names({"background": 0, "lung": 1, "liver": 2})


class Brightness(Model):
    """A network that finds the lung where the image is brighter than 60, and nothing else."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=3, in_channels=1, num_classes=3)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of background, lung and liver."""
        return torch.cat([60 - image, image - 60, torch.full_like(image, -1e4)], 1)


def settings(name: str, raw: int | None = None, **more: Any) -> SavedModel:
    """Settings of a small network."""
    preprocessing = {"spacing": [1.5] * 3, "resample_raw": raw, "channels": [{"method": "none"}]}
    return SavedModel.parse(
        {
            "medseg": "0",
            "name": name,
            "model": {"name": "unet_3d", "channels": [4, 8]},
            "channel_names": ["CT"],
            "preprocessing": preprocessing,
            "window": [8, 8, 8],
            "predict": {"skip_empty": False},
            **more,
        }
    )


def network() -> Model:
    """A network whose labels depend on the place of its windows."""
    torch.manual_seed(2)
    return medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])


def image(axcodes: str = "RAS", *, bright: float = 100) -> medseg.Volume:
    """An image with a bright part at one side."""
    shape, spacing = (26, 24, 20), (1.1, 0.9, 2.0)
    data = np.random.default_rng(0).normal(0, 20, shape).round().astype(np.int16)
    data[15:20, 3:9, 10:14] += np.int16(bright)
    return medseg.Volume(data[None], medseg.Grid.from_spacing(shape, spacing)).reoriented(axcodes)


def predictors(raw: int | None, **crop: Any) -> tuple[Predictor, Predictor, Predictor]:
    """The model that crops, the same model that does not, and their first stage."""
    stage = Predictor(Brightness(), settings("organs"), ORGANS, device="cpu")
    around = {"labels": ["lung"], "margin_mm": 4.5, **crop}
    cropping = settings("vessels", raw, crop_around=around)
    model = network()
    return (
        Predictor(model, cropping, LABELS, device="cpu", first_stage=stage),
        Predictor(model, settings("vessels", raw), LABELS, device="cpu"),
        stage,
    )


@pytest.mark.parametrize("raw", [None, 1])
@pytest.mark.parametrize("axcodes", ["RAS", "LIA"])
def test_the_label_map_is_that_of_the_image_cropped_by_hand(raw: int | None, axcodes: str) -> None:
    cropping, plain, stage = predictors(raw)
    volume = image(axcodes)
    inside = np.argwhere(stage(volume).data[0] == 1)
    margin = (np.array([4.5] * 3) / volume.grid.spacing).astype(int)
    start = np.maximum(inside.min(0) - margin, 0)
    stop = np.minimum(inside.max(0) + 1 + margin, volume.grid.shape)
    assert 0 < np.prod(stop - start) < 0.6 * volume.data.size
    expected = np.zeros(volume.grid.shape, np.uint8)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    expected[box] = plain(volume.cropped(start, stop - start)).data[0]
    found = cropping(volume)
    assert found.grid == volume.grid
    assert {0, 3} == set(np.unique(expected))
    np.testing.assert_array_equal(found.data[0], expected)
    assert not np.array_equal(expected, plain(volume).data[0]), "the crop moves the windows"


@pytest.mark.parametrize("raw", [None, 1])
def test_everything_is_background_where_the_first_stage_finds_nothing(
    raw: int | None, tmp_path: Path
) -> None:
    cropping, _, _ = predictors(raw)
    volume = image(bright=0)
    prepared = cropping.prepare(volume)
    evidence = cropping.evidence_sums()
    found = cropping.run(prepared, probabilities=tmp_path / "p.nii", evidence=evidence)
    assert not found.data.any()
    values = nib.load(tmp_path / "p.nii").get_fdata()
    assert values.shape == (*volume.grid.shape, 2)
    np.testing.assert_allclose(values, np.broadcast_to([1, 0], values.shape), atol=1e-4)
    assert [one.predicted for one in evidence.evidence().outputs] == [0]


def test_probabilities_are_on_the_grid_of_the_file(tmp_path: Path) -> None:
    cropping, _, _ = predictors(1)
    volume = image("LIA")
    found = cropping.run(cropping.prepare(volume), probabilities=tmp_path / "p.nii")
    values = nib.load(tmp_path / "p.nii").get_fdata()
    np.testing.assert_array_equal(np.array([0, 3])[values.argmax(-1)], found.data[0])


def test_the_estimate_is_that_of_the_part_that_is_left() -> None:
    cropping, plain, _ = predictors(1)
    assert 0 < estimate_image(cropping, image()).windows < estimate_image(plain, image()).windows


def test_a_model_folder_holds_its_first_stage(tmp_path: Path) -> None:
    cropping, _, _ = predictors(1)
    stage_model = medseg.build_model("unet_3d", in_channels=1, num_classes=3, channels=[4, 8])
    save_model(tmp_path / "stage", stage_model, settings("organs"), ORGANS)
    with pytest.raises(ModelError, match="first stage: found none"):
        save_model(tmp_path / "model", cropping.model, cropping.saved, LABELS)
    save_model(tmp_path / "model", cropping.model, cropping.saved, LABELS, tmp_path / "stage")
    loaded = medseg.load(tmp_path / "model", device="cpu")
    assert loaded.first_stage is not None
    assert loaded.first_stage.labels.names == ORGANS.names
    assert "cropped around lung" in (tmp_path / "model" / "README.md").read_text()


def test_an_unknown_label_is_refused() -> None:
    cropping, _, _ = predictors(1, labels=["lungs"])
    with pytest.raises(DataError, match="Did you mean 'lung'"):
        cropping(image())


def test_a_cascade_does_not_crop() -> None:
    with pytest.raises(ConfigError, match="crop_around: found the second stage of a cascade"):
        settings("both", crop_around={"labels": ["lung"]}, num_first_stage_labels=2)
