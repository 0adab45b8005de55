"""Folders of pictures with instance maps or label maps, from files to samples."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from medseg.cli.main import main
from medseg.data.datasets.layouts import is_dataset, read_dataset
from medseg.data.datasets.read_case import (
    read_case_image,
    read_case_instances,
    read_case_label,
    read_case_objects,
)
from medseg.data.patches.extraction import PatchReader
from medseg.data.patches.interpolation import interpolate_ids
from medseg.data.patches.prepare_cases import fill_store
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import DataError
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from tests.helpers.patches import patch_dataset

SETTINGS = Preprocessing(channels=(Normalization(method="rescale"),) * 3)
NUCLEUS = Labels.from_names({"nucleus": 1})


def picture(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name)


def disks(seed: int, count: int = 300, shape=(60, 80)) -> np.ndarray:
    """Ids `(rows, columns)` of many small squares, most of which touch others; more than 255."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.uint16)
    for number in range(1, count + 1):
        row, column = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 4)
        ids[row : row + 4, column : column + 4] = number
    return ids


@pytest.fixture
def nuclei(tmp_path):
    for number in range(2):
        ids = disks(number)
        colour = np.random.default_rng(number).integers(60, 200, (*ids.shape, 3)).astype(np.uint8)
        colour[..., 1] = np.where(ids > 0, 250, 10)
        picture(tmp_path / "images", f"cell_{number}.png", colour)
        picture(tmp_path / "instances", f"cell_{number}.png", ids)
    return tmp_path


def test_colours_are_channels_and_ids_reach_beyond_255(nuclei):
    assert is_dataset(nuclei)
    dataset = read_dataset(nuclei)
    assert dataset.channel_names == ("red", "green", "blue")
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "instance")
    assert len(dataset.labelled_cases) == 2
    case = dataset.case("cell_1")
    image, ids = read_case_image(case, 3), read_case_instances(case)
    assert image.data.shape == (3, 80, 60, 1)
    assert np.array_equal(ids.data[0, :, :, 0].T, disks(1))
    label = read_case_label(case, NUCLEUS)
    assert (label.data == (ids.data > 0)).all()
    assert (image.data[1] == np.where(label.data[0], 250, 10)).all()


def test_instances_alone_can_be_of_one_class_only(nuclei):
    case = read_dataset(nuclei).cases[0]
    with pytest.raises(
        DataError, match="found instances without a label map, expected one, because there are 2"
    ):
        read_case_label(case, Labels.from_names({"a": 1, "b": 2}))


def test_label_maps_and_instance_maps_can_be_combined(nuclei):
    picture(nuclei / "labels", "cell_0.png", (disks(0) % 3).astype(np.uint8))
    (nuclei / "labels.tsv").write_text("value\tname\n0\tbackground\n1\ta\n2\tb\n")
    dataset = read_dataset(nuclei, layout="images")
    case = dataset.case("cell_0")
    assert dataset.labels is not None
    label = read_case_label(case, dataset.labels)
    assert np.array_equal(label.data[0, ..., 0].T, disks(0) % 3)
    assert case.files == (case.images[0], case.label, case.instances)


def test_volumes_are_accepted_too(tmp_path, make_volume):
    write(make_volume((4, 5, 6)), tmp_path / "images" / "a.nii.gz")
    write(make_volume((4, 5, 6), kind="label"), tmp_path / "labels" / "a.nrrd")
    dataset = read_dataset(tmp_path)
    assert (dataset.channel_names, dataset.labels) == (("image",), None)
    assert dataset.cases[0].instances is None


def test_incompatible_files_raise(nuclei):
    picture(nuclei / "instances", "cell_9.png", disks(0))
    with pytest.raises(DataError, match=r"maps without an image: found 1 \(cell_9\.png\)"):
        read_dataset(nuclei)
    (nuclei / "instances" / "cell_9.png").unlink()
    picture(nuclei / "instances", "cell_1.tif", disks(0))
    with pytest.raises(DataError, match=r"found cell_1\.png and cell_1\.tif"):
        read_dataset(nuclei)
    (nuclei / "instances" / "cell_1.tif").unlink()
    picture(nuclei / "instances", "cell_1.png", disks(0, shape=(30, 30)))
    with pytest.raises(DataError, match="instance map: not on the grid of"):
        read_case_instances(read_dataset(nuclei).case("cell_1"))
    for file in (nuclei / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="found no image"):
        read_dataset(nuclei)


def test_a_table_may_name_instances(nuclei):
    lines = ["case\timage\tinstances", "a\timages/cell_0.png\tinstances/cell_0.png", "b\timages/cell_1.png\t"]
    (nuclei / "cases.tsv").write_text("\n".join(lines))
    dataset = read_dataset(nuclei)
    first, second = dataset.cases
    assert first.instances == nuclei / "instances" / "cell_0.png"
    assert second.instances is None
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "instance")
    (nuclei / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tnucleus\n")
    named = read_dataset(nuclei).labels
    assert named is not None
    assert named.names == ("background", "nucleus")


def test_names_are_missing_where_a_table_has_label_maps(nuclei):
    picture(nuclei / "labels", "cell_1.png", (disks(1) > 0).astype(np.uint8))
    (nuclei / "cases.tsv").write_text(
        "case\timage\tlabel\tinstances\na\timages/cell_0.png\t\tinstances/cell_0.png\n"
        "b\timages/cell_1.png\tlabels/cell_1.png\t\n"
    )
    assert read_dataset(nuclei).labels is None


@pytest.fixture
def faulty(tmp_path):
    """Five cases of which three have a fault each; no names of labels."""
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 10), np.uint8)
    mask[:4] = 255
    for name in "abcde":
        picture(tmp_path / "images", f"{name}.png", rng.integers(0, 200, (12, 10, 3), dtype=np.uint8))
        picture(tmp_path / "labels", f"{name}.png", mask)
    picture(tmp_path / "labels", "b.png", np.stack([mask] * 3, axis=-1))
    picture(tmp_path / "labels", "c.png", mask[:6])
    picture(tmp_path / "images", "d.png", mask)
    return tmp_path


def test_inspect_reports_faults_of_natural_images(faulty, capsys):
    assert main(["inspect", str(faulty)]) == 2
    told = capsys.readouterr()
    assert "labels: found no names for the values 0, 255. Add labels.tsv (value, name)" in told.out
    assert [line.split()[0] for line in told.out.splitlines()[-2:]] == ["a", "e"]
    colour, size, channels = told.err.splitlines()
    assert "b.png: found 3 channels, expected a label map with one. Convert its colours" in colour
    assert "c.png: label map: not on the grid of" in size
    assert channels.startswith("case d: channels: found 1, expected 3. If it is a grey image")
    (faulty / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tcell\n")
    assert main(["inspect", str(faulty), "--cases", "1"]) == 2
    assert "set data.labels={cell: 255}" in capsys.readouterr().err
    (faulty / "labels.tsv").write_text("value\tname\n0\tbackground\n255\tcell\n")
    assert main(["inspect", str(faulty), "--cases", "1"]) == 0


def test_folders_that_lack_something_for_a_dataset(nuclei, capsys):
    shutil.rmtree(nuclei / "instances")
    (nuclei / "notes.txt").write_text("about the images")
    assert main(["inspect", str(nuclei)]) == 1
    assert (
        "found images/ without labels/, masks/, segmentations/ or instances/, expected one of these folders"
        in capsys.readouterr().err
    )
    assert main(["inspect", str(nuclei / "images")]) == 0
    (nuclei / "empty").mkdir()
    (nuclei / "empty" / ".DS_Store").touch()
    assert main(["inspect", str(nuclei / "empty")]) == 1
    assert "found an empty folder, expected a dataset or images" in capsys.readouterr().err
    for folder, message in ((nuclei, "found images/ without"), (nuclei / "empty", "found an empty folder")):
        with pytest.raises(DataError, match=message):
            read_dataset(folder)


def test_inspect_counts_instances(nuclei, capsys):
    assert main(["inspect", str(nuclei)]) == 0
    told = capsys.readouterr().out
    assert "2 cases, 0 with a label map, 2 with an instance map, 2 subjects" in told
    assert f"cell_0        80x60x1  1x1x1 mm  LPS  {len(np.unique(disks(0))) - 1} instances" in told


@pytest.mark.parametrize("spacing", [None, (0.7, 0.7, 1.0)])
def test_prepared_instances_fit_their_label(nuclei, tmp_path, spacing):
    settings = SETTINGS.replace(spacing=spacing)
    (case, _) = fill_store(tmp_path / "store", read_dataset(nuclei).cases, NUCLEUS, settings)
    assert case.has_instances
    assert case.instances.dtype == np.int32
    assert case.instances.shape == case.label.shape
    assert ((case.instances > 0) == (case.label > 0)).all()
    assert set(np.unique(case.instances)) <= set(np.unique(disks(0)).tolist())
    if spacing is None:  # RAS is the other way round than a picture's rows and columns
        assert np.array_equal(case.instances[0, ::-1, ::-1, 0].T, disks(0))


def samples(nuclei, tmp_path, augmentation, length=8):
    cases = list(fill_store(tmp_path / "store", read_dataset(nuclei).cases, NUCLEUS, SETTINGS))
    return patch_dataset(
        cases, size=(32, 24, 1), length=length, seed=3, augmentation=augmentation, view=SliceView(axis=2)
    )


def test_samples_carry_the_instances_along(nuclei, tmp_path):
    turning = Augmentation(rotate_p=0.5, scale_p=0.5, noise_p=0, blur_p=0, contrast_p=0, gamma_p=0)
    dataset = samples(nuclei, tmp_path, turning)
    drawn = [dataset[index] for index in range(8)]
    batch = default_collate(drawn)
    assert (batch["image"].shape, batch["instances"].shape) == ((8, 3, 32, 24), (8, 1, 32, 24))
    assert batch["instances"].dtype == torch.int32
    assert (batch["instances"] > 0).any()
    assert (batch["label"][batch["instances"] > 0] == 1).all()
    both = (batch["label"] > 0) == (batch["instances"] > 0)
    assert both.float().mean() > 0.97  # turned patches: a border that two instances share may lean to neither
    plain = samples(nuclei, tmp_path, None)[1]
    assert ((plain["label"] > 0) == (plain["instances"] > 0)).all()


def test_a_sample_without_instances_is_as_before(nuclei, tmp_path, make_stored):
    dataset = samples(nuclei, tmp_path, Augmentation())
    with_ids = [dataset[index] for index in range(8)]
    for case in dataset.cases:
        (case.folder / "instances.npy").unlink()
    without = samples(nuclei, tmp_path, Augmentation())
    for one, index in zip(with_ids, range(8), strict=True):
        other = without[index]
        assert set(other) == {"image", "label"}
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_ids_are_interpolated_as_labels_are():
    rng = np.random.default_rng(0)
    label = np.repeat(np.repeat(rng.integers(0, 7, (1, 5, 6, 4)), 3, axis=1), 3, axis=2).astype(np.uint8)

    class InMemory:
        image, instances = label.astype(np.float32), label.astype(np.int32)

    InMemory.label = label
    for seed in range(5):
        matrix = np.eye(3) + np.random.default_rng(seed).normal(size=(3, 3)) * 0.3
        patch = (
            PatchReader((20, 17, 6), with_instances=True).read(InMemory, np.array([8, 8, 2]), matrix).patch()
        )
        assert (patch.label == patch.instances).float().mean() > 0.999  # exact ties may fall either way


def test_an_even_share_goes_to_the_smaller_id_and_outside_is_0():
    ids = torch.tensor([5, 3, 0]).view(1, 3, 1, 1)
    place = torch.tensor([0.5, 1.5, 2.0, -2.0, 0.2]).view(-1, 1, 1)
    grid = torch.zeros(1, 5, 1, 1, 3)
    grid[..., 2] = (2 * place + 1) / 3 - 1
    assert interpolate_ids(ids, grid).flatten().tolist() == [3, 0, 0, 0, 5]


def test_real_nuclei(shared_data, tmp_path):
    dataset = read_dataset(shared_data / "nuclei")
    assert len(dataset.cases) == 159
    case = next(case for case in dataset.cases if case.id.startswith("07fb37aa"))
    ids = read_case_instances(case)
    assert len(Instances.from_map(ids.data[0])) == 313
    (stored,) = fill_store(tmp_path, [case], NUCLEUS, SETTINGS)
    assert stored.instances.max() == 313


def test_an_instance_is_of_the_class_that_most_of_its_voxels_have(nuclei):
    ids = read_case_instances(read_dataset(nuclei).case("cell_0")).data[0, ..., 0].T
    label = np.where(ids > 0, 1 + ids % 2, 0).astype(np.uint8)
    some = np.argwhere(ids == ids.max())[0]
    label[tuple(some)] = 3 - label[tuple(some)]  # one voxel of another class decides nothing
    picture(nuclei / "labels", "cell_0.png", label)
    labels = Labels.from_names({"even": 1, "odd": 2})
    found = read_case_objects(read_dataset(nuclei).case("cell_0"), labels)
    assert found.values == {int(k): 1 + int(k) % 2 for k in np.unique(ids[ids > 0])}
    for value in (0, 9):
        picture(nuclei / "labels", "cell_0.png", np.where(ids == ids.max(), value, label).astype(np.uint8))
        with pytest.raises(DataError, match=r"instances outside of every label: found ids \d+ \(1\)"):
            read_case_objects(read_dataset(nuclei).case("cell_0"), replace(labels, ignore=9))
