from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from medseg.errors import ConfigError, DataError
from medseg.labels.label_table import Labels
from medseg.viz import explore
from medseg.viz.explore import Viewer, legend_html, png_of, render_slice, show, widgets_run
from medseg.viz.slice_images import label_slice, slice_rgb
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (12, 10, 8)
GRID = Grid.from_spacing(SHAPE, (1, 1, 2))
IMAGE = Volume(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32), GRID)
DATA = np.zeros((1, *SHAPE), np.uint8)
DATA[0, 2:6, 3:7, 5] = 1
LABELS = Volume(DATA, GRID, "label")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(imread(io.BytesIO(png)))[..., :3]


@pytest.fixture
def in_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(explore, "widgets_run", lambda: True)


def test_outside_jupyter_it_is_a_figure() -> None:
    assert not widgets_run()
    figure = show(IMAGE, LABELS, names=Labels.from_names({"organ": 1}))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.usefixtures("in_jupyter")
def test_sliders_change_the_image() -> None:
    viewer = show(IMAGE, LABELS, LABELS.with_data(DATA * 0))
    assert isinstance(viewer, Viewer)
    tools, columns, legend = viewer.widget.children
    picture, slider = columns.children[0].children
    assert (slider.description, slider.value, slider.max) == ("axial", 5, 7)
    before = picture.value
    table = Labels.from_names({"label_1": 1})
    window = (0.0, 1.0)
    assert pixels(before).shape == render_slice(IMAGE, LABELS, table, "axial", 5, window, 0.45).shape
    slider.value = 4
    off_the_label = picture.value
    assert before != off_the_label
    slider.value = 5
    assert picture.value == before
    menu, opacity, switch = tools.children
    opacity.value = 0
    assert picture.value != before
    opacity.value = 0.45
    switch.value = "reference"
    without = picture.value
    assert without != before
    menu.value = "bone"
    assert picture.value != without
    assert "label_1" in legend.value


@pytest.mark.usefixtures("in_jupyter")
def test_a_page_without_widgets_shows_the_still_figure() -> None:
    bundle = show(IMAGE)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


@pytest.mark.usefixtures("in_jupyter")
def test_a_colour_image_has_one_plane_and_no_label_controls() -> None:
    data = np.random.default_rng(0).integers(0, 255, (3, 9, 8, 1)).astype(np.uint8)
    viewer = show(Volume(data, Grid.from_spacing((9, 8, 1))))
    tools, columns, _ = viewer.widget.children
    assert len(tools.children) == 1
    assert len(columns.children) == 1


def test_render_without_labels_is_the_slice() -> None:
    table = Labels.from_names({"organ": 1})
    plain = render_slice(IMAGE, None, table, "coronal", 4, None, 0.5)
    np.testing.assert_array_equal(plain, render_slice(IMAGE, LABELS, table, "coronal", 4, None, 0))
    assert max(plain.shape) >= 480  # outlines stay thin on large voxels
    assert slice_rgb(IMAGE, "coronal", 4).shape == (16, 12, 3)
    assert label_slice(LABELS, "coronal", 4).any()
    assert (plain != render_slice(IMAGE, LABELS, table, "coronal", 4, None, 0.5)).any()


def test_png_keeps_every_pixel() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.rint(pixels(png_of(rgb)) * 255), rgb)


def test_legend_escapes_and_ends() -> None:
    labels = Labels.from_names({f"<{value}>": value for value in range(1, 80)})
    text = legend_html(labels.foreground)
    assert "&lt;60&gt;" in text
    assert "&lt;61&gt;" not in text
    assert text.endswith("and 19 more")


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match="unknown window"):
        show(IMAGE, window="sofft tissue")
    with pytest.raises(DataError, match="one channel of integers"):
        show(IMAGE, IMAGE)
