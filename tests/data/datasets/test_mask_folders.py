"""Folders of images with masks of the same names."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from medseg.cli.main import main
from medseg.data.datasets.layouts import is_dataset, read_dataset
from medseg.data.datasets.read_case import read_case_label
from medseg.data.settings import DataSettings
from medseg.errors import DataError
from medseg.labels.label_table import Labels


def write_image(path, value, shape=(4, 5)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def cells(tmp_path):
    for name in ("001", "002"):
        write_image(tmp_path / "images" / f"{name}.png", 100)
    write_image(tmp_path / "masks" / "001.png", 255)
    return tmp_path


@pytest.mark.parametrize("layout", ["auto", "masks"])
def test_masks_are_paired_with_images(cells, layout):
    dataset = read_dataset(cells, layout)
    first, second = dataset.cases
    assert (first.id, first.label) == ("001", cells / "masks" / "001.png")
    assert (second.id, second.label) == ("002", None)
    assert dataset.labels is None
    assert (read_case_label(first, Labels.from_names({"cell": 255})).data == 1).all()
    assert DataSettings(layout=layout).layout == layout


def test_names_are_read_from_a_table_of_labels(cells):
    (cells / "labels.tsv").write_text("value\tname\n0\tbackground\n255\tcell\n")
    labels = read_dataset(cells).labels
    assert labels is not None
    assert labels.names == ("background", "cell")


def test_label_maps_take_precedence(cells):
    write_image(cells / "labels" / "001.png", 1)
    assert read_dataset(cells).cases[0].label == cells / "labels" / "001.png"
    assert read_dataset(cells, "masks").cases[0].label == cells / "masks" / "001.png"


def test_a_mask_without_an_image_is_refused(cells):
    write_image(cells / "masks" / "003.png", 255)
    with pytest.raises(DataError, match=r"masks: maps without an image: found 1 \(003\.png\)"):
        read_dataset(cells)


def test_a_file_that_is_no_image_is_refused(cells):
    (cells / "images" / "001.png").write_text("no image")
    with pytest.raises(DataError, match=r"001\.png"):
        read_dataset(cells)


def test_inspect_names_the_values_that_need_a_name(cells, capsys):
    assert main(["inspect", str(cells)]) == 0
    told = capsys.readouterr().out
    assert "2 cases, 1 with a label map" in told
    assert "found no names for the values 255" in told


def test_a_folder_of_masks_alone_is_no_dataset(cells):
    assert is_dataset(cells)
    shutil.rmtree(cells / "images")
    assert not is_dataset(cells)
