from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.check.self_test import LARGEST_EDGE, central_block, copies_of, differing_fractions, self_test
from medseg.cli.main import main
from medseg.data.datasets.phantom import phantom_case
from medseg.inference.predictor import Predictor
from medseg.inference.preparation.image_source import Source
from medseg.io.files import write
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.nnunet_models import dataset_of, import_without_reference, plans_3d, write_trained
from tests.helpers.predictors import MakePredictor


@pytest.fixture
def image() -> Volume:
    return phantom_case(0, shape=(14, 12, 10), spacing=(20, 22, 30))[0]


def saved(folder: Path, make_predictor: MakePredictor, orientation: str | None = "RAS") -> Path:
    predictor = make_predictor()
    preprocessing = predictor.saved.preprocessing.replace(orientation=orientation)
    settings = predictor.saved.replace(preprocessing=preprocessing.to_plain())
    save_model(folder, predictor.model, settings, predictor.labels)
    return folder


def test_copies_are_the_same_voxels_at_the_same_places(image: Volume) -> None:
    copies = list(copies_of(image))
    assert len({copy.image.grid.axcodes for copy in copies[:47]} | {image.grid.axcodes}) == 48
    for copy in copies[:47]:
        back = copy.image.reoriented(image.grid.axcodes)
        assert np.array_equal(back.data, image.data)
        assert back.grid.matches(image.grid)
    assert [copy.name for copy in copies[47:]] == ["shifted", "oblique"]
    for copy in copies[47:]:
        assert np.array_equal(copy.image.data, image.data)
        assert np.allclose(copy.image.spacing, image.spacing)
        assert copy.image.grid.distance(image.grid) > 10


def test_a_prediction_by_array_index_is_not_invariant(image: Volume) -> None:
    def first_half(volume: Volume) -> Volume:
        labels = np.zeros(volume.data.shape, np.uint8)
        labels[:, : volume.grid.shape[0] // 2] = 1
        return volume.with_data(labels, kind="label")

    fractions = differing_fractions(first_half, first_half(image), list(copies_of(image)))
    different = [name for name, fraction in fractions.items() if fraction]
    assert {"shifted", "oblique"}.isdisjoint(different)
    assert len(different) > 36  # copies that keep direction and place of the first axis are equal


def test_a_prediction_by_position_differs_only_at_other_places(image: Volume) -> None:
    middle = image.grid.corners.mean(axis=0)[0]

    def right_of_the_middle(volume: Volume) -> Volume:
        index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.grid.shape), indexing="ij"), axis=-1)
        x = index @ volume.grid.affine[0, :3] + volume.grid.affine[0, 3]
        return volume.with_data((x > middle).astype(np.uint8)[None], kind="label")

    fractions = differing_fractions(right_of_the_middle, right_of_the_middle(image), list(copies_of(image)))
    different = {name for name, fraction in fractions.items() if fraction}
    assert "shifted" in different
    assert different <= {"shifted", "oblique"}


@pytest.mark.slow
def test_a_model_with_an_orientation_passes(
    image: Volume, tmp_path: Path, make_predictor: MakePredictor, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model", make_predictor)
    write(image, tmp_path / "ct.nii.gz")
    assert main(["check", str(model), str(tmp_path / "ct.nii.gz")]) == 0
    assert "the self-test with ct passed: 49 copies" in capsys.readouterr().out


def test_a_model_that_follows_file_axes_is_a_note_of_its_own(
    image: Volume, tmp_path: Path, make_predictor: MakePredictor
) -> None:
    model = saved(tmp_path / "model", make_predictor, orientation=None)
    write(image, tmp_path / "ct.nii.gz")
    findings, passed = self_test(model, [tmp_path / "ct.nii.gz"])
    assert [(one.code, one.severity) for one in findings] == [
        ("MODEL_FOLLOWS_FILE_AXES", "note"),
        ("MODEL_WITHOUT_TRAINING_DATA", "note"),
    ]
    assert "2 copies" in passed[0]


def test_large_images_are_tested_on_their_central_block() -> None:
    image = Volume(np.arange(200 * 8 * 2).reshape(1, 200, 8, 2), Grid.from_spacing((200, 8, 2)))
    block = central_block(image)
    assert block.grid.shape == (LARGEST_EDGE, 8, 2)
    assert block.data[0, 0, 0, 0] == image.data[0, 52, 0, 0]


def saved_u_net(folder: Path, name: str) -> Path:
    """Write a model folder of a network whose last layer finds all classes."""
    options = (
        {"channels": [4, 8], "num_blocks": 1} if not name.startswith("resunet") else {"channels": [4, 8]}
    )
    torch.manual_seed(0)
    labels = Labels.from_names({"background": 0, "liver": 5, "spleen": 7})
    model = build_model(name, in_channels=1, num_classes=3, **options)
    settings = SavedModel.parse(
        {
            "medseg": "0",
            "name": name,
            "model": {"name": name, **options},
            "channel_names": ["CT"],
            "preprocessing": {
                "orientation": "RAS",
                "spacing": (20.0, 20.0, 30.0),
                "channels": [{"method": "zscore"}],
            },
            "window": (16, 16, 16) if name.endswith("3d") else (16, 16, 1),
            "predict": {"precision": "float32"},
        }
    )
    save_model(folder, model, settings, labels)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet_2d", "attention_unet_3d", "resunet_3d"])
def test_u_nets_pass(name: str, image: Volume, tmp_path: Path) -> None:
    write(image, tmp_path / "ct.nii.gz")
    findings, passed = self_test(saved_u_net(tmp_path / "model", name), [tmp_path / "ct.nii.gz"])
    assert [one.code for one in findings] == ["MODEL_WITHOUT_TRAINING_DATA"]
    assert "49 copies" in passed[0]


@pytest.mark.slow
@pytest.mark.parametrize(("orientation", "copies"), [("LAS", 49), (None, 2)])
def test_a_model_of_nnunet_passes(
    orientation: str | None, copies: int, image: Volume, tmp_path: Path
) -> None:
    trained = write_trained(tmp_path, "3d_fullres", plans_3d([30.0, 20.0, 20.0]), dataset_of())
    import_without_reference(trained, tmp_path / "model", orientation=orientation)
    write(image, tmp_path / "ct.nii.gz")
    findings, passed = self_test(tmp_path / "model", [tmp_path / "ct.nii.gz"])
    expected = [] if orientation else ["MODEL_FOLLOWS_FILE_AXES"]
    assert [one.code for one in findings if one.code != "IMAGE_UNLIKE_TRAINING"] == expected
    assert f"{copies} copies" in passed[0]


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 2])
def test_a_reader_that_flips_an_axis_is_found(
    axis: int, image: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved_u_net(tmp_path / "model", "unet_3d")
    plain = Predictor.read

    def flipping(predictor: Predictor, source: Source) -> tuple[Volume, str]:
        volume, where = plain(predictor, source)
        return volume.with_data(np.flip(volume.data, axis + 1).copy()), where

    monkeypatch.setattr(Predictor, "read", flipping)
    write(image, tmp_path / "ct.nii.gz")
    findings, passed = self_test(model, [tmp_path / "ct.nii.gz"])
    assert [one.code for one in findings] == ["MODEL_WITHOUT_TRAINING_DATA", "MODEL_NOT_INVARIANT"]
    assert "orientation" in findings[1].found
    assert passed == []
