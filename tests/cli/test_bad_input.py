"""What a user sees for each kind of mistake: one sentence with file, field, found, expected and remedy, code 1."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms


@pytest.fixture
def refused(capsys):
    """Run the command, expect code 1 and one message without traceback; returns the message."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert told.startswith(f"medseg {arguments[0]}: ")
        return told

    return run


@pytest.fixture
def toy(workplace, tmp_path):
    """Own copy of the dataset, and arguments that train on it."""
    shutil.copytree(workplace / "data", tmp_path / "data")
    return ["train", workplace / "toy.yaml", "--data", tmp_path / "data", "--run", tmp_path / "run"]


def holds(told: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in told, told


def test_missing_file(refused, workplace, tmp_path):
    holds(
        refused("inspect", tmp_path / "ct.nii.gz"), tmp_path / "ct.nii.gz", "no such file", "Check the path"
    )
    told = refused("predict", workplace / "run" / "model", tmp_path / "ct.nii.gz", "-o", tmp_path / "o")
    holds(told, tmp_path / "ct.nii.gz", "no such file or folder", "Check the path")


def test_file_missing_from_a_dataset(refused, toy, tmp_path):
    for name in ("imagesTr/phantom_001.nii.gz", "labelsTr/phantom_003.nii.gz"):
        (tmp_path / "data" / name).unlink()
    told = refused(*toy)
    holds(
        told, "2 files are missing", "phantom_001.nii.gz (case", "labelsTr/phantom_003.nii.gz", "Restore them"
    )


def test_truncated_file(refused, toy, tmp_path):
    victim = tmp_path / "data" / "imagesTr" / "phantom_002.nii.gz"
    victim.write_bytes(victim.read_bytes()[:-200])
    told = refused(*toy)
    holds(told, victim, "voxel data are damaged or end early", "expected (", "Copy the file again")
    assert not (tmp_path / "run").exists()


def test_label_on_another_grid(refused, toy, tmp_path):
    victim = tmp_path / "data" / "labelsTr" / "phantom_001.nii.gz"
    label = medseg.read_labels(victim)
    medseg.write(label.cropped((0, 0, 0), [n - 1 for n in label.grid.shape]), victim)
    told = refused(*toy)
    holds(
        told,
        victim,
        "label map: not on the grid of",
        "phantom_001.nii.gz",
        "found ",
        "expected ",
        "Resample",
    )


def test_label_displaced(refused, toy, tmp_path):
    victim = tmp_path / "data" / "labelsTr" / "phantom_001.nii.gz"
    label = medseg.read_labels(victim)
    affine = label.grid.affine.copy()
    affine[0, 3] += 5
    medseg.write(medseg.Volume(label.data, medseg.Grid(label.grid.shape, affine), "label"), victim)
    holds(refused(*toy), victim, "within 0.05 voxels, corners are up to 5 mm apart")


def test_unknown_label_value(refused, toy, tmp_path):
    victim = tmp_path / "data" / "labelsTr" / "phantom_000.nii.gz"
    label = medseg.read_labels(victim)
    data = label.data.copy()
    data[0, 0, 0, :3] = 77
    medseg.write(label.with_data(data), victim)
    told = refused(*toy)
    holds(
        told, victim, "unknown label value: found 77 (3 voxels)", "expected one of 0, 1, 2, 3, 4, 5", "Add it"
    )


def test_nan_in_an_image(refused, toy, tmp_path):
    victim = tmp_path / "data" / "imagesTr" / "phantom_000.nii.gz"
    image = medseg.read(victim)
    data = image.data.astype(np.float32)
    data[0, 1, 1, 1] = np.nan
    medseg.write(image.with_data(data), victim)
    holds(
        refused(*toy),
        "phantom_000",
        "found NaN or infinity in 1 voxel,",
        "expected none",
        "Replace them",
    )


def test_config_typo(refused, workplace, tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text("train:\n  stepz: 5\nmodle: {}\n")
    holds(
        refused("train", config),
        config,
        "2 mistakes",
        "train.stepz: unknown key. Did you mean 'steps'",
        "'model'",
    )
    told = refused("train", workplace / "toy.yaml", "train.optimizer.momentm=0.9")
    holds(told, "train.optimizer.momentm: unknown key. Did you mean 'momentum'")
    holds(
        refused("train", workplace / "toy.yaml", "train.loss=dice-ce"), "train.loss", "dice_ce", "'dice-ce'"
    )
    holds(refused("train", workplace / "toy.yaml", "model.name=unet3d"), "model", "Did you mean 'unet_3d'")
    holds(refused("train", workplace / "toy.yaml", "train.steps"), "expected key=value")
    holds(refused("train", workplace / "tyo.yaml"), "no such file. Did you mean 'toy.yaml'")


def test_wrong_number_of_channels(refused, workplace, toy, tmp_path, make_volume, capsys):
    medseg.write(make_volume(channels=2), tmp_path / "two.nii.gz")
    code = main(
        [
            "predict",
            str(workplace / "run" / "model"),
            str(tmp_path / "two.nii.gz"),
            "-o",
            str(tmp_path / "out"),
        ]
    )
    told = capsys.readouterr().err
    assert code == 2  # the only case failed
    holds(told, "two.nii.gz: channels: found 2 (two.nii.gz), expected 1 (", "Give one file per channel")
    victim = tmp_path / "data" / "imagesTr" / "phantom_001.nii.gz"
    image = medseg.read(victim)
    medseg.write(image.with_data(np.concatenate([image.data] * 2)), victim)
    holds(refused(*toy), "case phantom_001: channels: found 2, expected 1")


def test_missing_data_path(refused, workplace, tmp_path):
    config = tmp_path / "no_data.yaml"
    config.write_text("name: no_data\n")
    told = refused("train", config, "--run", tmp_path / "run")
    holds(told, "data.path: missing", "--data PATH")
    told = refused("train", config, "--run", tmp_path / "run", "--data", tmp_path / "nowhere")
    holds(told, tmp_path / "nowhere", "no such file or folder, expected a dataset", "Give a dataset's folder")
    assert not (tmp_path / "run").exists()


def test_flat_patch_for_a_volume_model(refused, workplace):
    told = refused("train", workplace / "toy.yaml", "patch.size=[8, 8]")
    holds(
        told, workplace / "toy.yaml", "patch.size: found 2 sizes [8, 8], expected 3", "model.name is unet_3d"
    )


def test_more_folds_than_subjects(refused, workplace, tmp_path):
    told = refused("train", workplace / "toy.yaml", "data.folds=9", "--run", tmp_path / "run")
    holds(told, "found 4 subjects", "expected at least 9", "Give fewer folds")
    holds(refused("train", workplace / "toy.yaml", "data.fold=2"), "data.fold: found 2, expected 0 to 1")


def test_no_labels_at_all(refused, tmp_path, workplace):
    table = tmp_path / "cases.tsv"
    data = workplace / "data"
    rows = [
        f"c{i}\t{data / f'imagesTr/phantom_00{i}.nii.gz'}\t{data / f'labelsTr/phantom_00{i}.nii.gz'}"
        for i in range(4)
    ]
    table.write_text("case\timage\tlabel\n" + "\n".join(rows) + "\n")
    told = refused("train", workplace / "toy.yaml", "--data", table, "--run", tmp_path / "run")
    holds(told, "labels")


def test_a_run_without_model(refused, workplace, tmp_path):
    told = refused("predict", tmp_path, __file__, "-o", tmp_path / "o")
    holds(told, "not a model folder", "Give RUN/model")


def test_other_dataset_instead_of_phantoms(refused, tmp_path, workplace):
    write_phantoms(tmp_path / "phantom_ct_3_0", cases=3, modality="mr", shape=(8, 8, 8), spacing=(30, 30, 30))
    told = refused(
        "train", workplace / "toy.yaml", "data={path: null, phantom: {modality: ct, cases: 3}}", "--run", tmp_path / "run"
    )  # fmt: skip
    holds(told, "phantom_ct_3_0", "found another dataset, expected phantom_ct")


@pytest.mark.parametrize("spacing", ["[-1,1,1]", "[0,1,1]", "[1,.inf,1]"])
def test_invalid_spacing(refused, toy, spacing):
    holds(refused(*toy, f"preprocess.spacing={spacing}"), "preprocess.spacing")


@pytest.mark.parametrize("device", ["foo", "cuda:97"])
def test_absent_device(refused, workplace, tmp_path, device):
    image = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    told = refused("predict", workplace / "run" / "model", image, "-o", tmp_path / "o", "--device", device)
    holds(told, f"device: found {device}, expected one of this machine, such as")


def test_an_axis_mirrored_twice(refused, workplace, tmp_path):
    image = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    told = refused("predict", workplace / "run" / "model", image, "-o", tmp_path / "o", "mirror_axes=[0,0]")
    holds(told, "mirror_axes", "found [0, 0], expected each axis once")


def test_predicting_images_needs_an_output_folder(refused, workplace):
    image = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    holds(refused("predict", workplace / "run" / "model", image), "--output")


def test_unwritable_output_raises_before_any_work(refused, workplace, tmp_path):
    (tmp_path / "file").write_text("")
    image = workplace / "data" / "imagesTr" / "phantom_000.nii.gz"
    told = refused("predict", workplace / "run" / "model", image, "-o", tmp_path / "file" / "out")
    holds(told, tmp_path / "file" / "out", "cannot be written")
    told = refused("train", workplace / "toy.yaml", "--run", tmp_path / "file" / "run")
    assert "at work" not in told


def test_a_run_that_is_not_finished_has_no_model(refused, workplace, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workplace / "run", run, ignore=shutil.ignore_patterns("model"))
    told = refused("predict", run, "--held-out")
    holds(told, run, "not finished", "medseg train --resume", run / "best")
    assert repr(medseg.load(workplace / "run")) == repr(medseg.load(workplace / "run" / "model"))


def test_image_instead_of_a_label_map(refused, tmp_path, make_volume):
    rng = np.random.default_rng(0)
    image = make_volume(kind="label").with_data(rng.integers(0, 200, (1, 7, 6, 5)).astype(np.uint8))
    medseg.write(image, tmp_path / "image.nii.gz")
    medseg.write(make_volume(kind="label"), tmp_path / "label.nii.gz")
    told = refused("evaluate", tmp_path / "label.nii.gz", tmp_path / "image.nii.gz")
    holds(told, "found 3 values in the prediction", "--labels TSV")


def test_a_mistake_in_dataset_json_is_named_by_line(refused, tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"a": 1},\n "channel_names": {"0": "CT"},}')
    told = refused("inspect", tmp_path)
    holds(told, "dataset.json: line 2, column", "Fix that line")
    assert "DICOM" not in told
