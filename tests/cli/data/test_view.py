from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import DataWarning


def contents(page: Path) -> list[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="case-\d+">(.*?)</script>', text, re.DOTALL)
    return [json.loads(one) for one in found]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "data", cases=3, shape=(14, 12, 10), spacing=(22, 24, 25))
    return tmp_path / "data"


def test_an_image_with_label_maps(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    image, label = (next((data / folder).glob("phantom_000*")) for folder in ("imagesTr", "labelsTr"))
    assert main(["view", str(image), str(label), "--reference", str(label)]) == 0
    page = tmp_path / f"{medseg.io.stem_of(image)}_view.html"
    assert page.name in capsys.readouterr().out
    (content,) = contents(page)
    assert [one["name"] for one in content["maps"]] == ["prediction", "reference"]
    assert content["difference"]
    page = str(tmp_path / "new" / "a.html")
    assert main(["view", str(image), str(label), "-o", page, str(label)]) == 0  # also after an option
    (content,) = contents(tmp_path / "new" / "a.html")
    assert len({one["name"] for one in content["maps"]}) == 2


def test_a_dataset_with_predictions(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for case in ("phantom_000", "phantom_002"):
        volume = medseg.read_labels(next((data / "labelsTr").glob(f"{case}*")))
        medseg.write(volume, out / f"{case}.nii.gz")
    assert main(["view", str(data), str(out), "-o", str(tmp_path / "a.html")]) == 0
    found = contents(tmp_path / "a.html")
    assert [one["name"] for one in found] == ["phantom_000", "phantom_002"]
    assert [one["name"] for one in found[0]["maps"]] == ["prediction", "reference"]
    assert {one["name"] for one in found[0]["labels"]} <= set(medseg.read_dataset(data).labels.names)
    assert main(["view", str(data), "--cases", "1", "-o", str(tmp_path / "b.html")]) == 0
    assert len(contents(tmp_path / "b.html")) == 1


def test_a_map_of_numbers_is_shown_over_the_image(data: Path, tmp_path: Path) -> None:
    image, label = (next((data / folder).glob("phantom_000*")) for folder in ("imagesTr", "labelsTr"))
    volume = medseg.read(image)
    shares = np.random.default_rng(0).random(volume.data.shape).astype(np.float32)
    numbers = tmp_path / f"{medseg.io.stem_of(image)}_uncertainty.nii"
    medseg.write(volume.with_data(shares), numbers)
    page = tmp_path / "a.html"
    assert main(["view", str(image), str(label), "--overlay", str(numbers), "-o", str(page)]) == 0
    (content,) = contents(page)
    (overlay,) = content["overlays"]
    assert (overlay["name"], overlay["low"], overlay["high"]) == ("uncertainty", 0.0, 1.0)


def intensities(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    return random.integers(0, 1000, shape)


def smooth_intensities(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (100 + 40 * np.sin(x / 5) + 50 * np.cos(y / 4) + 3 * z).astype(np.int64)


@pytest.mark.parametrize("draw", [intensities, smooth_intensities])
@pytest.mark.parametrize("option", [[], ["--reference"]])
def test_an_image_without_negative_values_is_refused_as_a_label_map(
    tmp_path: Path, capsys, draw, option
) -> None:
    shape, grid = (30, 24, 12), medseg.Grid.from_spacing((30, 24, 12), (1, 1, 2))
    image = medseg.Volume(draw(shape, np.random.default_rng(0))[None].astype(np.int16), grid)
    medseg.write(image, tmp_path / "image.nii.gz")
    path = str(tmp_path / "image.nii.gz")
    assert main(["view", path, *option, path, "-o", str(tmp_path / "a.html")]) == 1
    assert "expected a label map. Give the label map, not an image" in capsys.readouterr().err


def test_many_small_instances_are_a_label_map(tmp_path: Path) -> None:
    grid = medseg.Grid.from_spacing((60, 60, 1), (1, 1, 1))
    ids = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((3, 3), int))[None, :, :, None].astype(np.int16)
    ids[:, ::3] = 0
    medseg.write(medseg.Volume(ids, grid, "label"), tmp_path / "ids.nii.gz")
    path = str(tmp_path / "ids.nii.gz")
    assert main(["view", path, path, "-o", str(tmp_path / "a.html")]) == 0
    assert len(contents(tmp_path / "a.html")[0]["labels"]) == 400


def test_the_page_says_that_a_map_is_on_another_grid(tmp_path: Path) -> None:
    image = medseg.Volume(np.zeros((1, 8, 8, 8), np.int16), medseg.Grid.from_spacing((8, 8, 8), (1, 1, 1)))
    labels = medseg.Volume(
        np.ones((1, 8, 8, 4), np.uint8), medseg.Grid.from_spacing((8, 8, 4), (1, 1, 2)), "label"
    )
    medseg.write(image, tmp_path / "image.nii.gz")
    medseg.write(labels, tmp_path / "labels.nii.gz")
    paths = [str(tmp_path / name) for name in ("image.nii.gz", "labels.nii.gz")]
    with pytest.warns(DataWarning, match="shown at its own place"):
        assert main(["view", *paths, "--overlay", paths[1], "-o", str(tmp_path / "a.html")]) == 0
    (content,) = contents(tmp_path / "a.html")
    assert [note.split(" is on another grid")[0] for note in content["notes"]] == ["labels", "labels"]
    assert str(tmp_path) not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_names_come_from_a_given_table(data: Path, tmp_path: Path) -> None:
    image, label = (next((data / folder).glob("phantom_000*")) for folder in ("imagesTr", "labelsTr"))
    (tmp_path / "names.tsv").write_text("value\tname\n1\tmy organ\n")
    page = str(tmp_path / "a.html")
    assert main(["view", str(image), str(label), "--names", str(tmp_path / "names.tsv"), "-o", page]) == 0
    (content,) = contents(tmp_path / "a.html")
    values = np.unique(medseg.read_labels(label).data)
    expected = ["my organ" if value == 1 else f"label_{value}" for value in values if value]
    assert [one["name"] for one in content["labels"]] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IMAGE", "IMAGE"], "Give the label map, not an image"),
        (["missing.nii.gz"], "missing.nii.gz"),
        (["IMAGE", "--max-size", "much"], "--max-size"),
        (["IMAGE", "--max-size", "900kB"], "expected at least 1."),
        (["DATA", "--overlay", "IMAGE"], "--overlay: found a dataset"),
        (["IMAGE", "--overlay", "nowhere.nii"], "nowhere.nii"),
        (["IMAGE", "--window", "lungs"], "unknown window"),
        (["DATA", "--reference", "IMAGE"], "--reference"),
        (["DATA", "EMPTY"], "found no label map of a case"),
        (["DATA", "nowhere"], "no such file or folder"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(data: Path, tmp_path: Path, capsys, arguments, message) -> None:
    (tmp_path / "empty").mkdir()
    image = next((data / "imagesTr").glob("phantom_000*"))
    words = {"IMAGE": str(image), "DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    page = tmp_path / "a.html"
    assert main(["view", *(words.get(one, one) for one in arguments), "-o", str(page)]) == 1
    assert message in capsys.readouterr().err
    assert not page.exists()
