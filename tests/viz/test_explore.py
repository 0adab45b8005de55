from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from medseg.errors import ConfigError, DataError
from medseg.labels.label_table import Labels
from medseg.viz import explore
from medseg.viz.explore import NOTEBOOK_BYTES, Viewer, in_jupyter, show
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (12, 10, 8)
GRID = Grid.from_spacing(SHAPE, (1, 1, 2))
IMAGE = Volume(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32), GRID)
DATA = np.zeros((1, *SHAPE), np.uint8)
DATA[0, 2:6, 3:7, 5] = 1
LABELS = Volume(DATA, GRID, "label")


@pytest.fixture
def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "in_jupyter", lambda: True)


def test_outside_jupyter_it_is_a_figure() -> None:
    assert not in_jupyter()
    figure = show(IMAGE, LABELS, names=Labels.from_names({"organ": 1}))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.usefixtures("in_a_notebook")
def test_the_output_of_a_cell_holds_the_figure_and_the_viewer() -> None:
    viewer = show(IMAGE, LABELS, LABELS.with_data(DATA * 0), names=Labels.from_names({"organ": 1}))
    assert isinstance(viewer, Viewer)
    assert list(viewer.case.maps) == ["prediction", "reference"]
    bundle = viewer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    html = bundle["text/html"]
    assert bundle["image/png"] in html
    assert 'sandbox="allow-scripts"' in html
    assert "&quot;name&quot;: &quot;organ&quot;" in html
    assert not re.search(r'src="(?!data:)', html)


@pytest.mark.usefixtures("in_a_notebook")
def test_a_large_image_does_not_fill_the_notebook() -> None:
    large = np.random.default_rng(0).integers(-1000, 1000, (1, 128, 128, 128)).astype(np.int16)
    viewer = show(Volume(large, Grid.from_spacing((128, 128, 128))))
    assert len(viewer._repr_mimebundle_()["text/html"]) < NOTEBOOK_BYTES * 1.2


@pytest.mark.usefixtures("in_a_notebook")
def test_a_viewer_is_saved_as_page_or_figure(tmp_path: Path) -> None:
    viewer = show(IMAGE, LABELS)
    viewer.save(tmp_path / "a.html")
    viewer.save(tmp_path / "a.png")
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match="unknown window"):
        show(IMAGE, window="sofft tissue")
    with pytest.raises(DataError, match="one channel of integers"):
        show(IMAGE, IMAGE)
