from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.viz.canvas import panel_inches, round_length
from medseg.viz.figures import overlay_figure, planes_of, save_overlay, smoothed, training_curves
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"liver": 1, "_tumour $x$": 4, "absent": 9})


def case(shape: tuple[int, int, int] = (16, 14, 12)) -> tuple[Volume, Volume]:
    grid = Grid.from_spacing(shape, (1, 1, 2))
    image = Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), grid)
    data = np.zeros((1, *shape), np.uint8)
    data[0, 3:9, 3:9, shape[2] // 2] = 1
    data[0, 5:7, 5:7, shape[2] // 2] = 4
    return image, Volume(data, grid, "label")


def texts(figure: matplotlib.figure.Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_an_overlay_is_written_completely(tmp_path: Path) -> None:
    image, labels = case()
    path = tmp_path / "new" / "case.png"
    save_overlay(path, image, labels, LABELS, reference=labels, title="costs $5 of $9_")
    assert [p.name for p in path.parent.iterdir()] == ["case.png"]
    pixels = imread(path)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 600
    liver = np.array(LABELS[1].colour) / 255
    assert (np.abs(pixels[..., :3] - liver).max(axis=-1) < 0.02).sum() > 100


def test_nothing_is_clipped(tmp_path: Path) -> None:
    """The outermost pixels of the figure are background, even with long names and titles."""
    image, labels = case()
    names = Labels.from_names({"a long name of a label that goes on and on and on": 1, "b" * 70: 4})
    save_overlay(tmp_path / "x.png", image, labels, names, reference=labels, title="t" * 150)
    pixels = imread(tmp_path / "x.png")[..., :3]
    frame = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)])
    frame = np.concatenate([frame, pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
    assert np.ptp(frame, axis=0).max() == 0


def test_the_legend_names_what_is_seen() -> None:
    image, labels = case()
    found = texts(overlay_figure(image, labels, labels=LABELS, title="a case"))
    assert {"liver", "_tumour $x$", "a case", "axial, slice 6"} <= set(found)
    assert "absent" not in found
    assert any(text.endswith(" mm") for text in found)
    assert "reference" not in found
    both = texts(overlay_figure(image, labels, labels, labels=LABELS))
    assert {"reference", "prediction"} <= set(both)


def test_slices_are_chosen_by_the_reference() -> None:
    image, reference = case()
    prediction = reference.with_data(np.roll(reference.data, 3, 3))
    assert "axial, slice 6" in texts(overlay_figure(image, prediction, reference))
    assert "axial, slice 9" in texts(overlay_figure(image, prediction))
    nothing = reference.with_data(reference.data * 0)
    assert "axial, slice 9" in texts(overlay_figure(image, prediction, nothing))


def test_an_image_alone_and_names_by_value() -> None:
    image, labels = case()
    assert len(overlay_figure(image).axes) == 3
    assert len(overlay_figure(image, labels, labels).axes) == 6
    assert "label_4" in texts(overlay_figure(image, labels))


@pytest.mark.parametrize(
    ("shape", "plane"), [((9, 8, 1), "axial"), ((9, 1, 8), "coronal"), ((1, 9, 8), "sagittal")]
)
def test_a_single_slice_is_shown_in_its_plane(shape: tuple[int, int, int], plane: str) -> None:
    image = Volume(np.zeros((1, *shape), np.float32), Grid.from_spacing(shape))
    assert planes_of(image) == (plane,)
    assert len(overlay_figure(image).axes) == 1


def test_a_colour_image_has_no_edge_letters_and_no_scale() -> None:
    data = np.random.default_rng(0).integers(0, 255, (3, 20, 20, 1)).astype(np.uint8)
    assert texts(overlay_figure(Volume(data, Grid.from_spacing((20, 20, 1))))) == []


def test_long_legends_end() -> None:
    names = Labels.from_names({f"organ_{value:03d}": value for value in range(1, 100)})
    image, _ = case()
    figure = overlay_figure(image)
    assert "organ_001" not in texts(figure)
    data = np.arange(image.data.size, dtype=np.uint8).reshape(image.data.shape) % 100
    found = texts(overlay_figure(image, image.with_data(data, "label"), labels=names))
    assert "organ_060" in found
    assert "organ_061" not in found
    assert "and 39 more" in found


def test_values_without_a_name_are_refused() -> None:
    image, labels = case()
    with pytest.raises(DataError, match="unknown label value: found 4"):
        overlay_figure(image, labels, labels=Labels.from_names({"liver": 1}))


def test_an_unsupported_format_is_refused(tmp_path: Path) -> None:
    image, labels = case()
    with pytest.raises(DataError, match=r"x\.tga: cannot write a figure in this format"):
        save_overlay(tmp_path / "x.tga", image, labels, LABELS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["svg", "pdf", "jpg"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    image, labels = case()
    save_overlay(tmp_path / f"x.{suffix}", image, labels, LABELS)
    start = (tmp_path / f"x.{suffix}").read_bytes()[:5]
    assert start.startswith({"svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8"}[suffix])


def test_training_curves(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / step, "lr": 0.01} for step in range(1, 120)]
    training_curves(tmp_path / "loss.png", rows)
    rows += [
        {"step": 60, "mean_dice": 0.5, "val_dice": {"liver": 0.5}},
        {"step": 119, "mean_dice": 0.75},
        {"step": 119, "loss": float("nan")},
    ]
    training_curves(tmp_path / "both.png", rows)
    heights = [imread(tmp_path / name).shape[0] for name in ("loss.png", "both.png")]
    assert heights[1] > 1.3 * heights[0]  # validation has its own axes
    training_curves(tmp_path / "one.png", rows[:1])
    with pytest.raises(DataError, match="no row with step and loss"):
        training_curves(tmp_path / "none.png", [{"event": "start"}])
    assert not (tmp_path / "none.png").exists()


def test_smoothed_is_a_trailing_mean() -> None:
    assert smoothed([1, 2, 3, 4, 8], 2) == [1, 1.5, 2.5, 3.5, 6]
    assert smoothed([1, 2, 3], 1) == [1, 2, 3]


@pytest.mark.parametrize(("most", "length"), [(0.7, 0.5), (1, 1), (4.9, 2), (33, 20), (120, 100), (0, 1e-4)])
def test_scales_have_round_lengths(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)


@pytest.mark.parametrize("extent", [(300, 400), (20, 500), (1800, 400), (1, 1)])
def test_panels_keep_their_proportions(extent: tuple[float, float]) -> None:
    height, width = panel_inches(*extent)
    assert height / width == pytest.approx(extent[0] / extent[1])
    assert height <= 3.2 + 1e-9
    assert width <= 1.6 * 3.2 + 1e-9


def test_no_global_state_and_no_early_import() -> None:
    code = (
        "import sys, medseg.viz.explore, medseg.viz.figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import medseg.viz.canvas\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
