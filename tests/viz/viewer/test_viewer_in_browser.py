"""The viewer as a reader sees it: values under the cross-hair in Chromium equal those of the file, without a network."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread, imsave
from scipy.spatial.transform import Rotation

import medseg
from medseg.labels.label_table import Labels
from medseg.viz.explore import Viewer
from medseg.viz.figures import overlay_figure
from medseg.viz.viewer.viewer_case import ViewerCase
from medseg.viz.viewer.viewer_page import write_viewer
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.browser import Browser, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

READY = "!!document.body && !!document.body.dataset.ready"
NAMES = Labels.from_names({"liver": 2, "left_kidney": 5, "<b>spleen</b>": 9})
PLACES = [(0.22, 0.2), (0.3, 0.3), (0.2, 0.75), (0.28, 0.7), (0.7, 0.25), (0.8, 0.3)]
"""Places in the coronal, axial and sagittal pane, as shares of the canvas."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(width=1000, height=640) as browser:
        yield browser


def oblique() -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (9, -12, 15), degrees=True).as_matrix() * (1.5, 2, 3)
    affine[:3, 3] = (-40, 25, 60)
    return Grid((40, 30, 20), affine)


def scene(grid: Grid) -> tuple[Volume, Volume]:
    """An image whose voxels all differ from their neighbours, and a map of three labels."""
    data = np.random.default_rng(1).integers(-1000, 1000, (1, *grid.shape)).astype(np.int16)
    labels = np.zeros(data.shape, np.uint8)
    x = np.arange(grid.shape[0])[:, None, None]
    labels[0] = np.choose(np.minimum(3, x * 4 // grid.shape[0]), [0, 2, 5, 9]) * np.ones(grid.shape, int)
    return Volume(data, grid), Volume(labels, grid, "label")


def shown(browser: Browser) -> dict[str, Any]:
    return dict(
        browser.run(
            "Object.fromEntries(['voxel', 'value', 'label'].map((id) => [id, document.getElementById(id).textContent])"
            ".concat([['mm', document.getElementById('position').dataset.mm]]))"
        )
    )


def clicked(browser: Browser, place: tuple[float, float]) -> dict[str, Any]:
    box = browser.run("(({x, y, width, height}) => [x, y, width, height])(canvas.getBoundingClientRect())")
    browser.click(box[0] + place[0] * box[2], box[1] + place[1] * box[3])
    return shown(browser)


def voxel_at(grid: Grid, found: dict[str, Any]) -> tuple[int, int, int]:
    position = np.linalg.inv(grid.affine) @ (*map(float, found["mm"].split()), 1)
    x, y, z = np.rint(position[:3]).astype(int).tolist()
    return x, y, z


def x_of(found: dict[str, Any]) -> float:
    return float(found["mm"].split()[0])


def pixels(browser: Browser) -> np.ndarray[Any, Any]:
    return np.asarray(imread(io.BytesIO(browser.screenshot())))[..., :3]


@pytest.mark.parametrize("codes", ["LPS", "SAL", "oblique"])
def test_position_value_and_name_under_a_click_equal_the_file(
    browser: Browser, tmp_path: Path, codes: str
) -> None:
    grid = oblique() if codes == "oblique" else Grid.from_spacing((40, 30, 20), (1.5, 2, 3))
    image, labels = scene(grid)
    if codes != "oblique":
        image, labels = image.reoriented(codes), labels.reoriented(codes)
    write_viewer(tmp_path / "a.html", [ViewerCase("a", image, {"labels": labels}, NAMES)])
    browser.open(tmp_path / "a.html", READY)
    seen = set()
    for place in PLACES:
        found = clicked(browser, place)
        voxel = voxel_at(image.grid, found)
        value = labels.data[(0, *voxel)]
        name = next(label.name for label in NAMES if label.value == value)
        expected = (", ".join(map(str, voxel)), str(image.data[(0, *voxel)]), name)
        assert (found["voxel"], found["value"], found["label"]) == expected
        seen.add(voxel)
    assert len(seen) == len(PLACES)
    assert browser.requests == []
    assert browser.errors == []


def test_the_patients_right_is_on_the_left_and_a_mirrored_file_is_seen(
    browser: Browser, tmp_path: Path
) -> None:
    image, labels = scene(oblique())
    mirrored = image.with_data(image.data[:, ::-1])
    write_viewer(tmp_path / "a.html", [ViewerCase("a", mirrored, {"labels": labels}, NAMES)])
    browser.open(tmp_path / "a.html", READY)
    left, right = clicked(browser, (0.2, 0.75)), clicked(browser, (0.3, 0.75))
    assert x_of(left) > x_of(right)  # RAS: positive is the patient's right
    for found in (left, right):
        assert found["value"] == str(mirrored.data[(0, *voxel_at(image.grid, found))])
        assert found["value"] != str(image.data[(0, *voxel_at(image.grid, found))])
    browser.run("radiological.click()")
    assert x_of(clicked(browser, (0.2, 0.75))) < x_of(clicked(browser, (0.3, 0.75)))


def test_every_pane_is_drawn_in_many_colours(browser: Browser, tmp_path: Path) -> None:
    image, labels = scene(oblique())
    write_viewer(tmp_path / "a.html", [ViewerCase("a", image, {"labels": labels}, NAMES)])
    browser.open(tmp_path / "a.html", READY)
    x, y, width, height = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])(canvas.getBoundingClientRect())"
    )
    canvas = pixels(browser)[int(y) : int(y + height), int(x) : int(x + width)]
    for rows in np.array_split(canvas, 2, axis=0):
        for pane in np.array_split(rows, 2, axis=1):
            assert len(np.unique(pane.reshape(-1, 3), axis=0)) > 50


def test_switches_of_labels_maps_cases_and_windows(browser: Browser, tmp_path: Path) -> None:
    image, labels = scene(oblique())
    reference = labels.with_data(np.where(labels.data == 5, 0, labels.data))
    maps = {"prediction": labels, "reference": reference}
    cases = [ViewerCase("first", image, maps, NAMES), ViewerCase("second", image)]
    write_viewer(tmp_path / "a.html", cases)
    browser.open(tmp_path / "a.html", READY)
    names = browser.run("[...document.querySelectorAll('#labels .name')].map((one) => one.textContent)")
    assert names == ["liver", "left_\u200bkidney", "<b>spleen</b>"]
    options = browser.run("[...map.options].map((one) => one.text)")
    assert options == ["prediction", "reference", "difference"]
    with_labels = pixels(browser)
    browser.run("none.click()")
    assert (pixels(browser) != with_labels).any()
    browser.run("all.click()")
    kidney = next(
        found
        for place in [(x / 50, 0.75) for x in range(8, 20)]
        if (found := clicked(browser, place))["label"] == "left_kidney"
    )
    browser.run("map.value = 2; map.dispatchEvent(new Event('change'))")
    browser.wait_for("label.textContent === 'only in the prediction'")
    assert shown(browser)["mm"] == kidney["mm"]
    browser.run(
        "document.getElementById('window').value = 2; document.getElementById('window').dispatchEvent(new Event('change'))"
    )
    assert browser.run("[low.value, high.value]") == ["-1350", "150"]
    browser.run(
        "document.getElementById('case').value = 1; document.getElementById('case').dispatchEvent(new Event('change'))"
    )
    browser.wait_for("document.querySelector('.maps').hidden")
    assert browser.errors == []


@pytest.mark.parametrize("colours", [False, True])
def test_numbers_of_an_overlay_under_a_click_equal_the_file(
    browser: Browser, tmp_path: Path, colours: bool
) -> None:
    image, labels = scene(oblique())
    if colours:
        imsave(tmp_path / "cells.png", np.zeros((24, 32, 3), np.float32))
        image = medseg.read(tmp_path / "cells.png")
        labels = Volume(np.ones((1, *image.grid.shape), np.uint8), image.grid, "label")
    numbers = np.random.default_rng(3).random((1, *image.grid.shape)).astype(np.float32)
    overlays = {"uncertainty": Volume(numbers, image.grid)}
    write_viewer(tmp_path / "a.html", [ViewerCase("a", image, {"labels": labels}, overlays=overlays)])
    browser.open(tmp_path / "a.html", READY)
    before = pixels(browser)
    browser.run("map.value = 1; map.dispatchEvent(new Event('change'))")
    browser.wait_for("document.getElementById('map-name').textContent === 'uncertainty'")
    assert (pixels(browser) != before).any()
    for place in PLACES[:4]:
        found = clicked(browser, place)
        at = (*map(int, found["voxel"].split(", ")), 0)[:3] if colours else voxel_at(image.grid, found)
        assert float(found["label"]) == pytest.approx(numbers[(0, *at)], abs=0.0051 / 2)
    assert browser.run("document.querySelector('.outlines').hidden")
    assert browser.errors == []


def test_a_natural_image_is_upright_and_shows_colours_and_instances(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels_of_file = rng.integers(0, 256, (24, 32, 3)).astype(np.float32) / 255
    imsave(tmp_path / "cells.png", pixels_of_file)
    image = medseg.read(tmp_path / "cells.png")
    ids = np.zeros(image.grid.shape, np.uint16)
    ids[:16, :12] = 700
    write_viewer(
        tmp_path / "a.html",
        [
            ViewerCase(
                "a",
                image,
                {"instances": Volume(ids[None], image.grid, "label")},
                Labels.from_names({"cell": 700}),
            )
        ],
    )
    browser.open(tmp_path / "a.html", READY)
    browser.run("crosshair.click()")
    found = clicked(browser, (0.3, 0.25))  # the upper left quarter of the picture
    column, row = map(int, found["voxel"].split(", "))
    assert (column < 16, row < 12) == (True, True)
    assert found["value"] == ", ".join(str(value) for value in image.data[:, column, row, 0])
    assert found["label"] == "cell"
    box = browser.run("(({x, y, width, height}) => [x, y, width, height])(canvas.getBoundingClientRect())")
    at = pixels(browser)[int(box[1] + 0.75 * box[3]), int(box[0] + 0.7 * box[2])] * 255
    far = clicked(browser, (0.7, 0.75))
    np.testing.assert_allclose(at, [int(value) for value in far["value"].split(", ")], atol=2)
    assert far["label"] == "background"


def test_a_stored_notebook_shows_the_viewer_and_without_scripts_the_figure(
    browser: Browser, tmp_path: Path
) -> None:
    nbformat = pytest.importorskip("nbformat")
    exporters = pytest.importorskip("nbconvert.exporters")
    image, labels = scene(oblique())
    viewer = Viewer(
        ViewerCase("image", image, {"labels": labels}, NAMES), overlay_figure(image, labels, labels=NAMES)
    )
    v4 = nbformat.v4
    output = v4.new_output("display_data", data=dict(viewer._repr_mimebundle_()))
    notebook = v4.new_notebook(cells=[v4.new_code_cell("medseg.show(image, labels)", outputs=[output])])
    page, _ = exporters.HTMLExporter(mathjax_url="", require_js_url="", jquery_url="").from_notebook_node(
        notebook
    )
    (tmp_path / "notebook.html").write_text(page, encoding="utf-8")
    browser.open(tmp_path / "notebook.html", "document.readyState === 'complete'")
    browser.wait_for("!document.querySelector('.medseg-viewer img')")  # the frame said that it is ready
    drawn = pixels(browser)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 200
