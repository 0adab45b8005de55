"""Instances of files: instance map, table and label map on the file's own grid."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.data.datasets.cases import Case
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import DataError, ModelError
from medseg.inference.cohort.batch import predict_files
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.instance_batch import predict_instance_files
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.written_files import FileKind
from medseg.inference.predictor import Predictor
from medseg.io.companions.instance_files import read_instances
from medseg.io.files import read, read_labels, write
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"background": 0, "small": 5, "large": 300})


class Threshold(Model):
    """Finds the connected parts of what is brighter than 0.5, of two classes by their size; brighter ones score higher."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=1, num_classes=3)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, image):
        bright = image[:, 0] - 0.5
        return torch.stack([-bright, bright, bright.abs() - 9], 1)

    def instances(self, image):
        self.batches.append(len(image))
        found = []
        for one in image[:, 0]:
            parts, count = ndimage.label(one.numpy() > 0.5)
            masks = torch.from_numpy(np.stack([parts == k for k in range(count + 1)])[1:])
            scores = torch.tensor([float(one[mask].mean()) for mask in masks])
            classes = torch.tensor([1 if mask.sum() < 30 else 2 for mask in masks])
            found.append(SimpleNamespace(masks=masks, classes=classes, scores=scores))
        return found


def predictor_of(model: Model, **predict) -> Predictor:
    saved = SavedModel.parse(
        {
            "medseg": "0",
            "name": "toy",
            "model": {"name": "mask_rcnn_resnet_50_fpn"},
            "channel_names": ["image"],
            "preprocessing": Preprocessing.parse({"crop_to_nonzero": True, "channels": [{"method": "none"}]}),
            "window": (8, 8, 1),
            "slices": {"batch_size": 3, "radiological_view": True},
            "predict": {"precision": "float32", **predict},
        }
    )
    return Predictor(model, saved, LABELS, device="cpu")


@pytest.fixture
def scene():
    """An image in LPI orientation with a large bright, a small and a faint block; and where they are."""
    data = np.zeros((20, 18, 8), np.float32)
    places = [np.s_[2:10, 3:9, 1:7], np.s_[12:15, 3:6, 2:4], np.s_[12:18, 10:16, 3:6]]
    for place, value in zip(places, (0.9, 0.8, 0.6), strict=True):
        data[place] = value
    return Volume(data[None], Grid.from_spacing(data.shape, (1, 2, 3)).reoriented("LPI")), places


def test_instances_of_a_volume_on_its_own_grid(scene):
    volume, places = scene
    model, seen = Threshold(), []
    predictor = predictor_of(model, min_instance_score=0.7)
    found = predictor.instances(volume, progress=lambda done, total, what: seen.append((done, total)))
    assert found.shape == (20, 18, 8)
    assert sorted(found.classes.tolist()) == [1, 2]
    assert sorted(np.round(found.scores, 4).tolist()) == [0.8, 0.9]
    expected = np.zeros(found.shape, bool)
    expected[places[0]] = expected[places[1]] = True
    assert np.array_equal(found.to_map() > 0, expected)
    assert model.batches[0] <= 3
    assert seen[-1] == (6, 6)  # cropped to the slices that hold something


def test_files_are_written_and_an_unreadable_image_does_not_stop_the_others(scene, tmp_path):
    volume, places = scene
    write(volume, tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    cases = [Case(name, (tmp_path / f"{name}.nii.gz",)) for name in "ba"]
    pairs = [(case, tmp_path / "out" / f"{case.id}.nii.gz") for case in cases]
    (tmp_path / "out").mkdir()
    recording = partial(CaseRecords(tmp_path / "out").recording, model_id=ModelId("one"), labels=LABELS)
    bad, good = predict_instance_files(
        predictor_of(Threshold()), pairs, recording=partial(recording, kinds=frozenset({FileKind.INSTANCES}))
    )
    assert isinstance(bad.error, DataError)
    assert not bad.target.exists()
    assert good.error is None
    labels = read_labels(tmp_path / "out" / "a.nii.gz")
    assert labels.grid == read(tmp_path / "a.nii.gz").grid
    assert np.unique(labels.data[0][places[0]]).tolist() == [300]
    assert np.unique(labels.data[0][places[1]]).tolist() == [5]
    file = read_instances(tmp_path / "out" / "a_instances.nii.gz")
    assert file.ids.grid == labels.grid
    assert np.array_equal(file.ids.data > 0, labels.data > 0)
    assert sorted(file.values.values()) == [5, 300, 300]
    assert sorted(file.scores.values()) == pytest.approx([0.6, 0.8, 0.9])
    assert (tmp_path / "out" / "a_instances.tsv").read_text().startswith("id\tlabel_value\tscore\n")
    # Another prediction of label maps alone leaves no instances that contradict it.
    (again,) = predict_files(
        predictor_of(Threshold()),
        [pairs[1]],
        kinds=frozenset({FileKind.PROBABILITIES}),
        recording=partial(recording, kinds=frozenset({FileKind.PROBABILITIES})),
    )
    assert again.error is None
    expected = [".cohort", "a.nii.gz", "a_probabilities.nii"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == expected
    list(
        predict_instance_files(
            predictor_of(Threshold()),
            [pairs[1]],
            recording=partial(recording, kinds=frozenset({FileKind.INSTANCES})),
        )
    )
    assert not (tmp_path / "out" / "a_probabilities.nii").exists()


def test_natural_image_has_one_slice(tmp_path):
    import SimpleITK as sitk

    picture = np.zeros((12, 30), np.uint8)
    picture[2:6, 4:20] = 200
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / "p.png"))
    found = predictor_of(Threshold()).instances(tmp_path / "p.png")
    assert found.shape == (30, 12, 1)
    assert found.boxes.tolist() == [[[4, 2, 0], [20, 6, 1]]]


def test_a_model_without_instances_is_refused(make_predictor, make_volume):
    with pytest.raises(ModelError, match="unet_2d: finds no instances"):
        make_predictor(2).instances(make_volume())
