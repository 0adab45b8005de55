"""Faults in reading image files that are known and not yet repaired.

Each test states the correct behaviour and is expected to fail. ``strict`` makes a repaired fault visible: remove its mark then and move the test to the
tests of the module.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import read_dataset

tifffile = pytest.importorskip("tifffile")


def known_fault(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


@known_fault("a TIFF with two or five channels is read scrambled")
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_every_channel_of_a_tiff_is_read(tmp_path: Path, planar: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (30, 40, 5)).astype(np.uint8)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "five.tif", stored, planarconfig=planar, photometric="minisblack")
    found = medseg.read(tmp_path / "five.tif").data
    np.testing.assert_array_equal(found[..., 0], values.transpose(2, 1, 0))


@known_fault("a tiled 16-bit TIFF is read as RGBA of 8 bits")
def test_a_tiled_tiff_keeps_its_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (128, 128)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "tiled.tif", values, tile=(64, 64))
    np.testing.assert_array_equal(medseg.read(tmp_path / "tiled.tif").data[0, :, :, 0], values.T)


@known_fault("the spacing of a 3D TIFF is ignored")
def test_the_spacing_of_a_3d_tiff_is_read(tmp_path: Path) -> None:
    metadata = {"spacing": 4.0, "unit": "mm", "axes": "ZYX"}
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.zeros((12, 32, 32), "u2"),
        imagej=True,
        resolution=(2, 2),
        metadata=metadata,
    )
    np.testing.assert_allclose(medseg.read(tmp_path / "stack.tif").spacing, (0.5, 0.5, 4.0))


@known_fault("the JSON file with the spacing of nnU-Net's TIFF datasets is ignored")
def test_the_json_beside_an_nnunet_tiff_gives_its_spacing(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ".tif", {"0": "EM"})
    tifffile.imwrite(tmp_path / "imagesTr" / "c_0000.tif", np.zeros((12, 32, 32), "u1"))
    tifffile.imwrite(tmp_path / "labelsTr" / "c.tif", np.zeros((12, 32, 32), "u1"))
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder / "c.json").write_text('{"spacing": [4.0, 0.5, 0.5]}')
    (case,) = read_dataset(tmp_path).cases
    np.testing.assert_allclose(medseg.read(case.images[0]).spacing, (0.5, 0.5, 4.0))


@known_fault("colour images in nnU-Net's layout are one file with several channel names")
def test_one_colour_file_holds_all_channels_of_an_nnunet_case(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ".png", {"0": "R", "1": "G", "2": "B"})
    Image.fromarray(np.zeros((48, 48, 3), "u1")).save(tmp_path / "imagesTr" / "c_0000.png")
    Image.fromarray(np.zeros((48, 48), "u1")).save(tmp_path / "labelsTr" / "c.png")
    (case,) = read_dataset(tmp_path).cases
    assert medseg.read(case.images[0]).channels == 3


@known_fault("a JPEG that names a resolution does not match its PNG mask")
def test_natural_images_match_by_pixels(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 10:40] = 1
    Image.fromarray(mask * 99 + 50).save(tmp_path / "a.jpg", dpi=(72, 72))
    Image.fromarray(mask).save(tmp_path / "a.png")
    medseg.evaluate(medseg.read_labels(tmp_path / "a.png"), tmp_path / "a.png")
    image, label = medseg.read(tmp_path / "a.jpg"), medseg.read_labels(tmp_path / "a.png")
    assert image.grid.matches(label.grid)


@known_fault("a mistake in dataset.json is reported as a missing DICOM series")
def test_inspect_names_the_line_of_a_mistake_in_dataset_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medseg.cli.main import main

    write_nnunet(tmp_path, ".nii.gz", {"0": "CT"})
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().rstrip("}") + ",}")
    main(["inspect", str(tmp_path)])
    printed = capsys.readouterr()
    assert "dataset.json: " in printed.out + printed.err
    assert "DICOM" not in printed.out + printed.err


@known_fault("names that differ only in letters outside ASCII clash")
def test_names_with_umlauts_are_different_cases(tmp_path: Path) -> None:
    for name in ("Müller", "Möller"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    cases: list[Case] = list(read_images(tmp_path))
    assert len({case.id for case in cases}) == 2


def write_nnunet(root: Path, ending: str, channels: dict[str, str]) -> None:
    """Write the description and the folders of an nnU-Net dataset with one case."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    description = {"channel_names": channels, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}))
