"""Imported models against nnU-Net itself: its own classes make, save and run the models, its answers are the reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import medseg
from medseg.cli.main import main
from medseg.data.preprocessing.prepare import prepare
from medseg.errors import ConfigError, MedsegError, ModelError
from medseg.inference.reference_output import FILE as REFERENCE
from medseg.interop.nnunet.model import FileAxes
from tests.helpers.nnunet_models import (
    THICK_KERNELS,
    THICK_STRIDES,
    Oracle,
    architecture,
    configuration,
    dataset_of,
    import_and_load,
    import_without_reference,
    plans_2d,
    plans_3d,
    plans_of,
    write_images,
    write_trained,
)

pytestmark = pytest.mark.slow

BY_SLICES = (2, 0, 1)  # tensor axes are file axes x, z, y


def thick() -> dict[str, Any]:
    """Plans of a 3D model of two channels, normalised in their mask, with thick slices across file axis x."""
    net = architecture(3, kernels=THICK_KERNELS, strides=THICK_STRIDES)
    schemes = ["ZScoreNormalization"] * 2
    return plans_of(
        {"3d_fullres": configuration([6, 24, 20], [4.2, 1.0, 0.8], net, schemes, [True, True])}, 2, BY_SLICES
    )


def old_plans() -> dict[str, Any]:
    """Plans as nnU-Net wrote them before 2.4."""
    plans = plans_3d([1.3, 1.2, 1.1], "CTNormalization")
    chosen = plans["configurations"]["3d_fullres"]
    layers = chosen.pop("architecture")["arch_kwargs"]
    chosen |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 6,
        "unet_max_num_features": 10,
        "n_conv_per_stage_encoder": layers["n_conv_per_stage"],
        "n_conv_per_stage_decoder": layers["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": layers["strides"],
        "conv_kernel_sizes": layers["kernel_sizes"],
    }
    plans["foreground_intensity_properties_by_modality"] = plans.pop(
        "foreground_intensity_properties_per_channel"
    )
    return plans


LARGE = {"shape": (22, 20, 17), "spacing": (1.0, 1.2, 1.5)}
SMALL = {"shape": (10, 12, 9), "spacing": (1.0, 1.0, 1.0)}
FLAT = {"shape": (9, 34, 30), "spacing": (5.0, 0.9, 1.1), "channels": 2, "border": 2}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # plans, images, checkpoints
    "plain": (plans_3d([1.4, 1.1, 1.2], "CTNormalization"), LARGE, {"mirror_axes": (0, 1)}),
    "residual": (
        plans_3d([1.4, 1.1, 1.2], "ZScoreNormalization", residual=True),
        LARGE,
        {"mirror_axes": (2,)},
    ),
    "plain_2d": (plans_2d(), LARGE, {"mirror_axes": (0,)}),
    "residual_2d_turned": (plans_2d(BY_SLICES, 2, residual=True), FLAT, {"mirror_axes": (1,)}),
    "smaller_than_the_patch": (plans_3d([1.0, 1.0, 1.0], "RescaleTo01Normalization"), SMALL, {}),
    "batch_norm": (plans_3d([1.3, 1.2, 1.1], "ZScoreNormalization"), LARGE, {"trainer": "nnUNetTrainerBN"}),
    "older_plans": (old_plans(), LARGE, {}),
    "thick_slices_two_folds": (thick(), FLAT, {"mirror_axes": (0, 2), "folds": (0, 1)}),
}


class Trained:
    """A case of `CASES`, trained and imported once; tests must not change it.

    Attributes:
        folder: trained folder. images: one file a channel. folds: of the model.
    """

    def __init__(self, place: Path, case: str) -> None:
        plans, images, more = CASES[case]
        name = next(iter(plans["configurations"]))
        self.folder = write_trained(place, name, plans, dataset_of(images.get("channels", 1)), **more)
        self.images = write_images(place / "images", **images)
        self.folds: tuple[Any, ...] = more.get("folds", (0,))
        self.model = place / "model"

    @cached_property
    def predictor(self) -> medseg.Predictor:
        """Of the imported model folder."""
        return import_and_load(self.folder, self.model)

    @cached_property
    def oracle(self) -> Oracle:
        """nnU-Net's own predictor with sums in float32."""
        return Oracle(self.folder, self.images, self.folds)

    @cached_property
    def labels(self) -> np.ndarray:
        """nnU-Net's own label map."""
        return self.oracle.labels()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Function that returns the `Trained` of a case."""
    return cache(lambda case: Trained(tmp_path_factory.mktemp(case), case))


@pytest.mark.parametrize("case", CASES)
def test_label_maps_equal_nnunet(case, trained):
    one = trained(case)
    found = one.predictor(one.images).data[0]
    assert (np.bincount(one.labels.ravel(), minlength=3) > 0.02 * one.labels.size).all()
    assert np.count_nonzero(found != one.labels) <= 1


@pytest.mark.parametrize("case", ["plain_2d", "thick_slices_two_folds"])
def test_label_maps_nearly_equal_nnunet_with_sums_in_half_precision(case, trained):
    one = trained(case)
    rounded = Oracle(one.folder, one.images, one.folds, exact=False).labels()
    assert (one.predictor(one.images).data[0] == rounded).mean() > 0.999


@pytest.mark.parametrize("case", ["plain", "residual_2d_turned", "thick_slices_two_folds"])
def test_prepared_images_and_logits_equal_nnunet(case, trained):
    one = trained(case)
    plans = CASES[case][0]
    order = [0, *(3 - axis for axis in plans["transpose_forward"])]  # from file order to tensor order
    data = np.concatenate([medseg.read(path).data for path in one.images])
    volume = medseg.Volume(data, medseg.read(one.images[0]).grid)
    image = prepare(volume, one.predictor.saved.preprocessing).image.data
    np.testing.assert_allclose(image.transpose(order), one.oracle.prepared(), atol=2e-5)
    if len(one.folds) == 1:  # nnU-Net has no function for the mean of several
        logits = one.predictor.logits(torch.from_numpy(image)).numpy().transpose(order)
        wanted = one.oracle.logits()
        assert wanted.std() > 1
        np.testing.assert_allclose(logits, wanted, atol=2e-3)


def test_several_folds_are_averaged(trained, tmp_path):
    both = trained("thick_slices_two_folds")
    image = torch.randn(2, 8, 24, 20)
    one, two = (import_and_load(both.folder, tmp_path / fold / "model", folds=[fold]) for fold in "01")
    wanted = (one.logits(image) + two.logits(image)) / 2
    assert (one.logits(image) - two.logits(image)).abs().max() > 1
    torch.testing.assert_close(both.predictor.logits(image), wanted, atol=1e-4, rtol=1e-5)
    assert [p.name for p in sorted(both.model.glob("*.safetensors"))] == [
        "member_0.safetensors",
        "member_1.safetensors",
    ]


def test_orientation_is_ignored_unless_requested(trained, tmp_path):
    one = trained("plain_2d")
    stored = {
        codes: write_images(tmp_path / codes, axcodes=codes, **SMALL)[0] for codes in ("LAS", "RAS", "PSR")
    }
    told = import_and_load(one.folder, tmp_path / "told", orientation="las")
    expected = {codes: Oracle(one.folder, [path]).labels() for codes, path in stored.items()}
    right = expected["LAS"]
    found = {codes: one.predictor(path) for codes, path in stored.items()}
    for codes, path in stored.items():
        assert np.array_equal(told(path).reoriented("LAS").data[0], right)
        assert np.array_equal(found[codes].data[0], expected[codes])
    assert not np.array_equal(found["PSR"].reoriented("LAS").data[0], right)


def test_reorienting_reader_is_reproduced(tmp_path):
    plans = {**plans_2d(), "image_reader_writer": "NibabelIOWithReorient"}
    folder = write_trained(tmp_path, "2d", plans, dataset_of())
    (path,) = write_images(tmp_path / "images", axcodes="LSA", **LARGE)
    found = import_and_load(folder, tmp_path / "model")(path)
    assert found.grid.axcodes == "LSA"
    assert np.array_equal(found.reoriented("RAS").data[0], Oracle(folder, [path]).labels())
    with pytest.raises(ConfigError, match=r"--orientation: found LPS, expected RAS"):
        import_without_reference(folder, tmp_path / "other", orientation="LPS")


def test_ignore_label_is_not_a_class(tmp_path):
    labels = {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_of(labels=labels), mirror_axes=(0,))
    images = write_images(tmp_path / "images", **LARGE)
    predictor = import_and_load(folder, tmp_path / "model")
    assert predictor.labels.names == ("background", "liver", "spleen")
    assert predictor.labels.ignore == 3
    assert np.count_nonzero(predictor(images).data[0] != Oracle(folder, images).labels()) <= 1


def test_exported_archive_is_imported_and_its_card_names_the_source(trained, tmp_path):
    one = trained("plain_2d")
    shutil.copytree(one.folder, tmp_path / "results" / "Dataset900_Toy" / one.folder.name)
    archive = shutil.make_archive(str(tmp_path / "exported"), "zip", tmp_path / "results")
    found = import_and_load(Path(archive), tmp_path / "a" / "model")(one.images).data
    assert np.array_equal(found, one.predictor(one.images).data)
    card = (tmp_path / "a" / "model" / "README.md").read_text()
    for part in ("nnU-Net v2", "nnUNetTrainer", "nnUNetPlans", "| configuration | 2d |", "| folds | 0 |"):
        assert part in card
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model"]


def test_choosing_one_of_several_models_is_required(tmp_path):
    net = architecture(2)
    plans = plans_of(
        {n: configuration([20, 16], [1.1, 1.3], net, ["NoNormalization"], [False]) for n in ("2d", "2d_b")}
    )
    for name in plans["configurations"]:
        write_trained(tmp_path / "results", name, plans, dataset_of())
    with pytest.raises(
        ModelError, match=r"found 2 models: .*2d, .*2d_b\. Choose one, or give --configuration"
    ):
        import_without_reference(tmp_path / "results", tmp_path / "model")
    saved = import_without_reference(tmp_path / "results", tmp_path / "model", configuration="2d_b")
    assert saved.trained_on["configuration"] == "2d_b"


def test_requested_folds_and_checkpoints_are_found_or_named(tmp_path):
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_of(), folds=(0, 3, "all"))
    saved = import_without_reference(folder, tmp_path / "numbered")
    assert (saved.members, saved.trained_on["folds"]) == (2, "0, 3")
    assert import_without_reference(folder, tmp_path / "all", folds=["all"]).trained_on["folds"] == "all"
    shutil.move(folder, tmp_path / "renamed")
    refused: list[tuple[type[MedsegError], str, dict[str, Any]]] = [
        (ConfigError, "exists already", {"output": tmp_path}),
        (ModelError, r"the name does not say which configuration", {}),
        (ModelError, r"found no '3d_fullres', expected one of 2d", {"configuration": "3d_fullres"}),
        (ModelError, r"fold_1.*no such file, found only fold_0, fold_3", {"folds": ["1"]}),
        (ConfigError, r"folds: found \.\., expected numbers", {"folds": [".."]}),
        (ModelError, r"found no fold_\*/checkpoint_best\.pth", {"checkpoint": "best"}),
        (MedsegError, "expected one letter each", {"orientation": "up"}),
    ]
    for kind, told, options in refused:
        chosen = {"output": tmp_path / "model", "configuration": "2d", **options}
        if "name does not" in told:
            del chosen["configuration"]
        with pytest.raises(kind, match=told):
            import_without_reference(tmp_path / "renamed", **chosen)
        assert not (tmp_path / "model").exists()


def test_checkpoint_of_another_configuration_raises(tmp_path):
    net = architecture(2)
    table = {
        n: configuration([20, 16], [s, s], net, ["NoNormalization"], [False])
        for n, s in (("2d", 1), ("b", 2))
    }
    folder = write_trained(tmp_path, "2d", plans_of(table), dataset_of())
    with pytest.raises(ModelError, match=r"init_args\.configuration: found '2d', expected 'b'"):
        import_without_reference(folder, tmp_path / "model", configuration="b")


def test_weights_of_another_network_raise(tmp_path):
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_of())
    other = write_trained(tmp_path / "other", "2d", plans_2d(residual=True), dataset_of())
    shutil.copy(other / "plans.json", folder / "plans.json")
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth: ResidualEncoderUNet: no tensor"):
        import_without_reference(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_gaps_in_labels_raise(tmp_path):
    folder = write_trained(tmp_path, "2d", plans_2d(), dataset_of())
    dataset = dataset_of(labels={"background": 0, "liver": 1, "spleen": 3})
    (folder / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(MedsegError, match=r"found the values \[0, 1, 3\], expected 0, 1, 2"):
        import_without_reference(folder, tmp_path / "model")


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_axes_follow_the_definition(transpose):
    """Carried through arrays: a tensor is the file's array reversed, then transposed."""
    shape = (2, 3, 5)
    tensor_shape = np.empty(shape).transpose(2, 1, 0).transpose(transpose).shape
    axes = FileAxes(transpose, 3)
    assert axes.per_file_axis(tensor_shape, across=None) == shape
    assert [shape[place] for place in axes.file_axes] == list(tensor_shape)
    assert [shape[axis] for axis in axes.sorted_file_axes((0,))] == [tensor_shape[0]]
    flat = FileAxes(transpose, 2)
    assert flat.per_file_axis(tensor_shape[1:], across=tensor_shape[0]) == shape
    assert shape[flat.slice_axis] == tensor_shape[0]
    assert {shape[axis] for axis in flat.sorted_file_axes((0, 1))} == set(tensor_shape[1:])


def test_spacing_comes_from_the_affine(tmp_path):
    """nnU-Net reads the header's float32 sizes; the two differ by rounding alone."""
    (path,) = write_images(tmp_path, (4, 4, 4), (0.7, 0.8, 0.9))
    np.testing.assert_allclose(medseg.read(path).spacing, nib.load(path).header.get_zooms(), rtol=1e-6)


def test_colour_natural_image_is_predicted(tmp_path):
    schemes = ["RGBTo01Normalization"] * 3
    chosen = configuration([20, 16], [1.0, 1.0], architecture(2), schemes, [False] * 3)
    plans = {**plans_of({"2d": chosen}, 3), "image_reader_writer": "NaturalImage2DIO"}
    folder = write_trained(tmp_path, "2d", plans, dataset_of(3), mirror_axes=(0, 1))
    x, y = np.meshgrid(np.arange(30), np.arange(26), indexing="xy")
    waves = [127 + 120 * np.sin(x / (3 + c) + y / 5) for c in range(3)]
    path = tmp_path / "picture.png"
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)
    found = import_and_load(folder, tmp_path / "model")(path).data[0]
    assert found.shape == (30, 26, 1)
    assert np.array_equal(found, Oracle(folder, [path]).labels())


def test_command_imports_and_reports_what_differs(trained, tmp_path, capsys):
    one = trained("plain_2d")
    folder, images = one.folder, one.images
    model, answers = tmp_path / "model", tmp_path / "answers"
    assert main(["import", "nnunet", str(folder), "-o", str(model), "--folds", "0"]) == 0
    told = capsys.readouterr().out
    assert f"{model}: unet_2d of nnUNetTrainer, 2d, folds 0" in told
    assert "import with --orientation" in told
    assert (model / REFERENCE).is_file()
    assert main(["predict", str(model), str(images[0]), "-o", str(answers), "precision=float32"]) == 0
    (answer,) = answers.glob("*.nii.gz")
    assert np.array_equal(np.asarray(nib.load(answer).dataobj), one.labels)
    assert main(["import", "nnunet", str(folder), "-o", str(model)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_published_plans_predict_a_real_image_as_nnunet(tmp_path, shared_data, shared_reference):
    """With narrower networks."""
    plans = json.loads((shared_reference / "nnunet_plans_hippocampus.json").read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [width // 4 for width in network["features_per_stage"]]
    image = sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))[0]
    folder = write_trained(tmp_path, "3d_fullres", plans, dataset_of())
    found = import_and_load(folder, tmp_path / "model")(image).data[0]
    assert np.count_nonzero(found != Oracle(folder, [image]).labels()) <= 1
