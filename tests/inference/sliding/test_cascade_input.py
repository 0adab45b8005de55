"""Two stages as one model: the first one's label map lands where it should, and one folder holds both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import phantom_case
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing, prepare, prepare_label
from medseg.errors import DataError, DataWarning, ModelError
from medseg.inference.estimate import estimate_image
from medseg.inference.predictor import Predictor, load
from medseg.inference.predictor_ensemble import PredictorEnsemble
from medseg.inference.sliding.engine import Engine
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import load_model, save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.base import Model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from medseg.runtime.memory import process_memory
from medseg.volumes.volume import Volume
from tests.helpers.memory import memory_taken
from tests.helpers.volumes import ORIENTATIONS

ORGANS = Labels.from_names({"background": 0, "liver": 5, "spleen": 7, "tumour": 300})


class Copies(Model):
    """Takes the one-hot channels for logits: what was put in must come out."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__(spatial_dims=3, in_channels=channels + labels, num_classes=labels + 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.check_image(image)
        seen = image[:, 1 - self.num_classes :] * self.scale
        return torch.cat([1 - seen.sum(1, keepdim=True), seen], dim=1)


def settings_of(labels: int = 0, **changes: object) -> SavedModel:
    values = {
        "medseg": "0",
        "name": "second" if labels else "first",
        "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
        "channel_names": ["CT"],
        "preprocessing": Preprocessing(channels=(Normalization(),)),
        "window": (8, 8, 8),
        "num_first_stage_labels": labels,
        "predict": {"precision": "float32", "overlap": 0.25},
    }
    return SavedModel.parse({**values, **changes})


def coarse_network(**changes: object) -> Predictor:
    """A network of random weights at a coarse spacing."""
    torch.manual_seed(3)
    model = build_model("unet_3d", in_channels=1, num_classes=len(ORGANS), channels=[4, 8], num_blocks=1)
    preprocessing = Preprocessing(spacing=(40, 38, 45), channels=(Normalization(),))
    return Predictor(
        model, settings_of(preprocessing=preprocessing, **changes), ORGANS, device="cpu", max_memory=2 << 40
    )


def copying(first_stage: Predictor | None = None, **changes: object) -> Predictor:
    saved = settings_of(3, **changes)
    return Predictor(Copies(1, 3), saved, ORGANS, device="cpu", first_stage=first_stage or coarse_network())


def scene(shape=(14, 12, 10), spacing=(20.0, 22.0, 24.0), oblique=False) -> tuple[Volume, Volume]:
    """Image and label map with the labels' values, a margin of zeros around the image."""
    image, organs = phantom_case(0, "ct", shape, spacing, oblique=oblique)
    data = image.data.copy()
    data[:, :1] = data[:, :, -2:] = data[..., :1] = 0
    values = np.array([0, 5, 7, 300, 5, 7], np.uint16)[organs.data]
    values[data == 0] = 0  # else the crop, which no label outside survives, would be seen
    return image.with_data(data), organs.with_data(values)


def as_case(tmp_path: Path, image: Volume, first_stage: Volume, name: str = "case") -> Case:
    medseg.write(image, tmp_path / f"{name}.nii.gz")
    medseg.write(first_stage, tmp_path / f"{name}_previous.nii.gz")
    return Case(name, (tmp_path / f"{name}.nii.gz",), first_stage=tmp_path / f"{name}_previous.nii.gz")


@pytest.mark.slow
def test_a_copied_label_map_comes_back_in_every_orientation(tmp_path):
    """Also where the label map is stored in another orientation than its image."""
    image, organs = scene()
    assert set(np.unique(organs.data)) == {0, 5, 7, 300}
    predictor = copying(window=(16, 16, 16))
    for axcodes, others in zip(ORIENTATIONS, reversed(ORIENTATIONS), strict=True):
        turned = image.reoriented(axcodes)
        case = as_case(tmp_path, turned, organs.reoriented(others))
        assert (
            predictor.prepare(case).image._image._data.shape[1:] != image.data.shape[1:]
        )  # the crop is at work
        found = predictor(case)
        assert found.grid.axcodes == axcodes
        assert np.array_equal(found.data, organs.reoriented(axcodes).data), axcodes


@pytest.mark.parametrize("changes", [{}, {"mirror_axes": (0, 1, 2)}, {"crop_to_body": True}])
def test_a_copied_label_map_comes_back_on_an_oblique_grid(tmp_path, changes):
    image, organs = scene((24, 22, 18), (15, 16, 18), oblique=True)
    assert image.grid.axcodes == organs.grid.axcodes
    assert np.abs(image.grid.affine[:3, :3]).astype(bool).sum() > 3
    settings = {"precision": "float32", **changes}
    if "crop_to_body" in changes:
        image = image.with_data(np.where(image.data == 0, -1000, image.data))
    preprocessing = Preprocessing(channels=(Normalization(method="ct", mean=0, std=500),))
    case = as_case(tmp_path, image, organs)
    found = copying(predict=settings, preprocessing=preprocessing)(case)
    assert np.array_equal(found.data, organs.data)
    assert found.grid.affine.tobytes() == medseg.read(case.images[0]).grid.affine.tobytes()


@pytest.mark.parametrize("spacing", [(10.0, 11.0, 12.0), (8.0, 30.0, 20.0), (7.0, 7.0, 60.0)])
def test_at_another_spacing_it_is_the_label_rule_both_ways(tmp_path, spacing):
    """Against the label map prepared whole, and its indicators brought back as logits are."""
    image, organs = scene()
    predictor = copying(preprocessing=Preprocessing(spacing=spacing, channels=(Normalization(),)))
    case = as_case(tmp_path, image.reoriented("LSA"), organs)
    prepared = predictor.prepare(case)
    seen = prepared.image.slices(0, prepared.image.shape[1])[-1].movedim(0, -1).numpy()
    prepared = prepare(medseg.read(case.images[0]), predictor.saved.preprocessing)
    classes = organs.reoriented("LSA").with_data(ORGANS.to_classes(organs.reoriented("LSA").data))
    assert np.array_equal(seen, prepare_label(classes, prepared, predictor.saved.preprocessing).data[0])
    found = predictor(case)
    same = found.data == organs.reoriented("LSA").data
    assert same.mean() > (0.98 if max(spacing) < 30 else 0.85)
    organ = organs.reoriented("LSA").data > 0
    assert same[organ].mean() > (0.9 if max(spacing) < 30 else 0.5)


def test_first_stage_predicts_a_missing_label_map(tmp_path):
    image, _ = scene()
    first = coarse_network()
    predictor = copying(first)
    expected = first(image)
    assert len(np.unique(expected.data)) > 2
    told: list[tuple[int, int]] = []
    found = predictor(image, progress=lambda done, total, what: told.append((done, total)))
    assert np.array_equal(found.data[image.data != 0], expected.data[image.data != 0])
    assert [pair for pair in told if pair[0] == pair[1]]
    assert len({total for _, total in told}) == 2  # of both stages
    case = as_case(tmp_path, image, expected.with_data(np.full_like(expected.data, 300)))
    inside = predictor(case).data[:, 1:, :-2, 1:]
    assert (inside == 300).mean() > 0.99  # and not, where one is given


def test_a_window_that_the_first_stage_marked_is_not_left_out(tmp_path):
    image, organs = scene((40, 12, 10))
    air = image.with_data(np.full_like(image.data, -1000.0))
    ct = Preprocessing(channels=(Normalization(method="ct", mean=0, std=500),))
    marks = np.zeros_like(organs.data)
    marks[:, 30:33, 4:7, 4:7] = 7
    case = as_case(tmp_path, air, organs.with_data(marks))
    with pytest.warns(DataWarning, match="found the value -1000 in all voxels"):
        found = copying(preprocessing=ct)(case)
    assert np.array_equal(found.data, marks)


def test_memory_bands_give_the_same_labels(tmp_path, monkeypatch):
    image, organs = scene()
    case = as_case(tmp_path, image, organs)
    predictor = copying()
    plan = Engine.plan
    monkeypatch.setattr(Engine, "plan", lambda self, prepared, **_: replace(plan(self, prepared), bands=3))
    assert np.array_equal(predictor(case).data, organs.data)


def write_stages(folder: Path, members: int = 1, **changes: object) -> Predictor:
    """A model folder of a cascade with random weights; returns the first stage."""
    first = coarse_network()
    save_model(folder.with_name("first"), first.model, first.saved, ORGANS)
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        networks.append(
            build_model("unet_3d", in_channels=4, num_classes=len(ORGANS), channels=[4, 8], num_blocks=1)
        )
    model = LogitEnsemble(networks) if members > 1 else networks[0]
    save_model(folder, model, settings_of(3, **changes), ORGANS, folder.with_name("first"))
    return first


@pytest.mark.parametrize("members", [1, 2])
def test_one_folder_holds_both_stages(tmp_path, members):
    first = write_stages(tmp_path / "model", members)
    image, _ = scene()
    predictor = load(tmp_path / "model", device="cpu")
    assert "after first" in repr(predictor)
    assert predictor.saved.members == members
    found = predictor(image)
    by_hand = predictor(as_case(tmp_path, image, first(image)))  # in two steps, over a file
    assert np.array_equal(found.data, by_hand.data)
    assert len(np.unique(found.data)) > 2
    assert not np.array_equal(found.data, first(image).data)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| first stage | in `first_stage/`, 3 additional channels |" in card
    blind = predictor(as_case(tmp_path, image, first(image).with_data(np.zeros_like(found.data))))
    assert not np.array_equal(blind.data, found.data)  # it does look at the map
    coarser = load(tmp_path / "model", device="cpu", overlap=0.5, keep_largest=("liver",))
    assert coarser.first_stage.settings.overlap == 0.5
    assert coarser.first_stage.settings.keep_largest == ()
    assert predictor.with_settings(overlap=0.0).first_stage.settings.overlap == 0.0


def test_incomplete_folder_raises(tmp_path):
    write_stages(tmp_path / "model")
    inner = tmp_path / "model" / "first_stage"
    assert load_model(inner)[1].name == "first"
    weights = (inner / "model.safetensors").read_bytes()
    (inner / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing files: first_stage/model\.safetensors"):
        load(tmp_path / "model")
    (inner / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"first_stage/model\.safetensors: found SHA-256"):
        load(tmp_path / "model")
    (inner / "model.safetensors").write_bytes(weights)
    (inner / "more.txt").write_text("")
    with pytest.raises(ModelError, match=r"unexpected files: first_stage/more\.txt"):
        load(tmp_path / "model")
    (inner / "more.txt").unlink()
    (tmp_path / "model" / "pictures").mkdir()
    (tmp_path / "model" / "pictures" / "a.png").write_text("")  # in a folder of its own
    load(tmp_path / "model")


def test_incompatible_stages_raise(tmp_path, make_predictor):
    model = build_model("unet_3d", in_channels=4, num_classes=len(ORGANS), channels=[4, 8], num_blocks=1)
    with pytest.raises(
        ModelError,
        match=r"model: first stage: found none, expected 3 foreground labels \(num_first_stage_labels of second\)",
    ):
        save_model(tmp_path / "model", model, settings_of(3), ORGANS)
    other = make_predictor(labels=Labels.from_names({"a": 1}))
    save_model(tmp_path / "other", other.model, other.saved, other.labels)
    with pytest.raises(
        ModelError, match=r"other: first stage: found 1 foreground labels, expected 3 foreground labels"
    ):
        save_model(tmp_path / "model", model, settings_of(3), ORGANS, tmp_path / "other")
    with pytest.raises(ModelError, match=r"other: first stage: found 1 foreground labels, expected none"):
        save_model(tmp_path / "model", other.model, other.saved, other.labels, tmp_path / "other")
    with pytest.raises(ModelError, match=r"first stage: found none, expected 3 foreground labels"):
        Predictor(model, settings_of(3), ORGANS, device="cpu")
    assert not (tmp_path / "model").exists()


def test_a_label_map_of_another_image_or_with_unknown_values_is_refused(tmp_path):
    image, organs = scene()
    predictor = copying()
    with pytest.raises(DataError, match="label map of the first stage: not on the grid of"):
        predictor(as_case(tmp_path, image, organs.cropped((0, 0, 0), (5, 5, 5))))
    with pytest.raises(DataError, match=r"unknown label value: found 9 \(.* voxels\)"):
        predictor(as_case(tmp_path, image, organs.with_data(np.where(organs.data == 7, 9, organs.data))))
    case = as_case(tmp_path, image, organs)
    (tmp_path / "case_previous.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case_previous\.nii\.gz"):
        predictor(case)


def test_an_ensemble_of_cascades(tmp_path):
    write_stages(tmp_path / "a" / "model")
    one = load(tmp_path / "a" / "model", device="cpu")
    other = copying()
    image, _ = scene()
    assert np.array_equal(PredictorEnsemble([one, one])(image).data, one(image).data)
    mean = PredictorEnsemble([one, other])(image)
    assert set(np.unique(mean.data)) <= {0, 5, 7, 300}
    assert not np.array_equal(mean.data, one(image).data)


def test_estimate_covers_both_stages(tmp_path):
    write_stages(tmp_path / "model")
    image, _ = scene()
    both, alone = load(tmp_path / "model", device="cpu"), load(tmp_path / "first", device="cpu")
    found, before = estimate_image(both, image), estimate_image(alone, image)
    assert found.seconds > 0.5 * before.seconds
    assert found.memory >= before.memory * 0.9
    assert found.shape == tuple(n - m for n, m in zip(image.grid.shape, (1, 2, 1), strict=True))
    assert found.windows + found.empty == len(
        both.engine.sliding.layout([found.shape[axis] for axis in (2, 0, 1)]).boxes
    )


@pytest.mark.slow
def test_a_budget_is_kept_by_both_stages(tmp_path):
    write_stages(tmp_path / "model", window=(32, 32, 32))
    image, _ = scene((70, 60, 48), (4.0, 4.6, 6.0))
    limit, shapes = 600 << 20, set()

    def predict():
        predictor = load(tmp_path / "model", device="cpu", max_memory=process_memory() + limit)
        shapes.add(predictor(image).data.shape)

    assert memory_taken(predict, limit) <= limit
    assert shapes == {image.data.shape}


def test_many_labels_are_never_held_as_channels(tmp_path):
    """The label map stays one channel of the image that is held; the network sees all, window by window."""
    names = Labels.from_names({f"organ {value}": value for value in range(1, 61)})
    first = settings_of()
    small = build_model("unet_3d", in_channels=1, num_classes=61, channels=[4, 8], num_blocks=1)
    stage = Predictor(small, first, names, device="cpu")
    predictor = Predictor(Copies(1, 60), settings_of(60), names, device="cpu", first_stage=stage)
    image, _ = scene()
    marks = np.arange(image.data.size).reshape(image.data.shape) % 61
    marks[image.data == 0] = 0
    case = as_case(tmp_path, image, image.with_data(marks.astype(np.uint8), "label"))
    assert predictor.prepare(case).image.shape[0] == 2
    assert np.array_equal(predictor(case).data, marks)
