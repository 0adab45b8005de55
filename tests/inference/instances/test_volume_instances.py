"""Instances of volumes, found window by window by a network whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.data.datasets.phantom import instance_phantom
from medseg.errors import ConfigError
from medseg.inference.instances.image_instances import onto_grid
from medseg.inference.instances.volume_instances import _mirrored_maps
from medseg.inference.predictor import Predictor
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.models import InstanceUNet3d, InstanceUNetConfig
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

CONFIG = {"name": "instance_unet_3d", "channels": [4, 8]}
LABELS = Labels.from_names({"background": 0, "cell": 3})


class Oracle(InstanceUNet3d):
    """Reads its answers from the image: one channel says where instances are, three hold the offsets in voxels."""

    def __init__(self):
        super().__init__(InstanceUNetConfig.from_channels(4, 2, channels=(4, 8)))

    def maps(self, image):
        inside = image[:, :1]
        return torch.cat([8 - 16 * inside, 16 * inside - 8, torch.ones_like(inside), image[:, 1:]], dim=1)


def predictor_of(window, **predict):
    saved = SavedModel.parse({
        "medseg": "0.1", "name": "cells", "model": CONFIG, "channel_names": ["inside", "x", "y", "z"],
        "preprocessing": {"orientation": "RAS", "channels": [{"method": "none"}] * 4, "crop_to_nonzero": False},
        "window": window, "predict": predict,
    })  # fmt: skip
    return Predictor(Oracle(), saved, LABELS, device="cpu")


@pytest.fixture(scope="module")
def cells():
    """The known answers for a volume of touching ellipsoids, and its instance map."""
    _, ids = instance_phantom(5, count=14, shape=(40, 36, 72))
    answers = np.zeros((4, *ids.grid.shape), np.float32)
    answers[0] = ids.data[0] > 0
    for number in range(1, int(ids.data.max()) + 1):
        places = np.argwhere(ids.data[0] == number)
        answers[(slice(1, None), *places.T)] = (places.mean(axis=0) - places).T
    return Volume(answers, ids.grid), ids


def test_instances_of_all_windows_are_whole_and_on_the_files_grid(cells):
    image, ids = cells
    seen = []
    found = predictor_of([16, 16, 16]).instances(image, progress=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1] > 20
    assert seen[-1][2] == "window"
    assert found.shape == ids.grid.shape
    reference = Instances.from_map(ids.data[0])
    assert len(found) == len(reference)
    assert np.array_equal(found.to_map() > 0, ids.data[0] > 0)
    for index in range(len(found)):
        inside = ids.data[0][found.box(index)][found.masks[index]]
        assert np.bincount(inside).max() > 0.97 * len(inside)
    assert found.scores.min() > 0.99


def test_axes_and_voxels_of_the_file_do_not_matter(cells):
    image, ids = cells
    turned = image.reoriented("SPL")
    # Offsets stay along the axes of the network, to which the file is turned again.
    found = predictor_of([40, 36, 24]).instances(turned)
    straight = predictor_of([40, 36, 24]).instances(image)
    back = Volume(found.to_map()[None], turned.grid, "label").reoriented_like(ids.grid)
    assert np.array_equal(back.data[0], straight.to_map())


def test_low_scores_are_left_out_and_other_engines_refused(cells):
    image, _ = cells
    assert len(predictor_of([40, 36, 24], min_instance_score=1.0).instances(image)) == 0
    predictor = predictor_of([40, 36, 24])
    object.__setattr__(predictor.saved.predict, "engine", "onnx")
    with pytest.raises(ConfigError, match="engine: found onnx, expected torch for instances"):
        predictor.instances(image)


def test_a_memory_that_is_too_small_is_refused_with_the_least_sufficient_one(cells):
    image, _ = cells
    predictor = predictor_of([16, 16, 16])
    predictor.engine = type(predictor.engine)(
        predictor.network, predictor.engine.sliding, predictor.engine.rule, max_memory=10**8
    )
    with pytest.raises(ConfigError, match=r"max_memory: found [^,]*, expected at least"):
        predictor.instances(image)


def test_flips_change_the_sign_of_offsets():
    def slopes(batch):
        """Maps of a network whose offsets are the slopes of the image, which turn with it."""
        image = batch[:, 0].numpy()
        x, y, z = (np.gradient(image, axis=axis) for axis in (2, 3, 1))  # of windows (n, Z, X, Y)
        flat = np.abs(image)
        return torch.from_numpy(np.stack([flat, -flat, flat, x, y, z], axis=1)).float()

    batch = torch.from_numpy(
        ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, 1, 6, 7, 8)), 1)
    )
    plain = slopes(batch)
    for axes in [(0,), (1, 2), (0, 1, 2)]:
        assert torch.allclose(_mirrored_maps(slopes, 2, axes, batch), plain, atol=1e-6)


@pytest.mark.parametrize("codes", ["RAS", "SLP"])
def test_parts_of_a_grid_join_to_the_same_instances(codes, monkeypatch):
    _, ids = instance_phantom(7, count=6, shape=(24, 26, 30), spacing=(1.0, 1.2, 1.5))
    instances = Instances.from_map(ids.data[0])
    target = Grid.from_spacing((33, 30, 36), (0.8, 1.0, 1.3)).reoriented(codes)
    whole = onto_grid(instances, ids.grid, target)
    monkeypatch.setattr("medseg.inference.instances.image_instances._VOXELS_AT_ONCE", 5000)
    parts = onto_grid(instances, ids.grid, target)
    assert np.array_equal(parts.to_map(), whole.to_map())
    assert np.array_equal(whole.to_map(), Volume(ids.data, ids.grid, "label").resampled(like=target).data[0])
    assert len(parts) == len(instances)
