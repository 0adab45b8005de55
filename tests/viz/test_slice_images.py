from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.io.files import read, read_labels
from medseg.labels.label_table import Labels
from medseg.viz.slice_images import (
    EDGES,
    PLANES,
    WINDOWS,
    Plane,
    best_slice,
    extent_mm,
    label_slice,
    labels_on_grid_of,
    overlay,
    region_edges,
    slice_count,
    slice_rgb,
    window_of,
)
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.paths import SHARED_FOLDER

SHAPE = (5, 6, 7)
FULL = (127.5, 255.0)  # level and width that keep 0 to 255 as they are
DATA = SHARED_FOLDER / "data"


def image(data: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> Volume:
    return Volume(data[None] if data.ndim == 3 else data, Grid.from_spacing(data.shape[-3:], spacing))


def dot(position: tuple[int, int, int]) -> Volume:
    data = np.zeros(SHAPE, np.float32)
    data[position] = 255
    return image(data)


# RAS: index 0 is left, posterior, inferior; the last is right, anterior, superior.
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "LAS", "PIR", "SAL"])
@pytest.mark.parametrize(
    ("plane", "position", "row", "column"),
    [
        ("axial", (4, 5, 3), 0, 0),  # right, front: top left
        ("axial", (0, 5, 3), 0, 4),  # left, front: top right
        ("axial", (4, 0, 3), 5, 0),  # right, back: bottom left
        ("coronal", (4, 3, 6), 0, 0),  # right, head: top left
        ("coronal", (0, 3, 0), 6, 4),  # left, feet: bottom right
        ("sagittal", (2, 5, 6), 0, 0),  # front, head: top left
        ("sagittal", (2, 0, 6), 0, 5),  # back, head: top right
        ("sagittal", (2, 5, 0), 6, 0),  # front, feet: bottom left
    ],
)
def test_sides_of_the_patient_are_where_a_radiologist_expects_them(
    plane: Plane, position: tuple[int, int, int], row: int, column: int, axcodes: str
) -> None:
    volume = dot(position)
    index = {"axial": position[2], "coronal": position[1], "sagittal": position[0]}[plane]
    picture = slice_rgb(volume.reoriented(axcodes), plane, index, FULL)
    assert picture.dtype == np.uint8
    assert np.argwhere(picture[..., 0] == 255).tolist() == [[row, column]]
    labels = volume.with_data((volume.data > 0).astype(np.uint8) * 9, "label").reoriented(axcodes)
    assert np.argwhere(label_slice(labels, plane, index) == 9).tolist() == [[row, column]]


def test_edge_letters_agree_with_the_images() -> None:
    """The side a letter names is the side where that direction's coordinate is largest."""
    axes = dict(zip("RAS", np.meshgrid(*[np.linspace(0, 255, n) for n in SHAPE], indexing="ij"), strict=True))
    opposite = {"L": "R", "P": "A", "I": "S"}
    for plane in PLANES:
        for letter, side in zip(EDGES[plane], ("top", "right", "bottom", "left"), strict=True):
            ramp = axes[opposite.get(letter, letter)]
            ramp = 255 - ramp if letter in opposite else ramp
            picture = slice_rgb(image(ramp.astype(np.float32)), plane, None, FULL)[..., 0]
            border = {
                "top": picture[0],
                "bottom": picture[-1],
                "left": picture[:, 0],
                "right": picture[:, -1],
            }
            assert (border[side] == 255).all(), (plane, letter)


@pytest.mark.parametrize(
    ("plane", "size"), [("axial", (30, 20)), ("coronal", (70, 20)), ("sagittal", (70, 30))]
)
def test_pixels_are_square(plane: Plane, size: tuple[int, int]) -> None:
    volume = image(np.zeros((10, 15, 14), np.float32), (2, 2, 5))
    assert extent_mm(volume, plane) == size
    expected = (size[0] // 2, size[1] // 2)
    assert slice_rgb(volume, plane).shape == (*expected, 3)
    assert label_slice(volume.with_data(volume.data.astype(np.uint8), "label"), plane).shape == expected
    assert slice_rgb(volume, plane, pixel_mm=1).shape == (*size, 3)


def test_ignored_pixels_are_grey() -> None:
    labels = replace(Labels.from_names({"a": 1}, {"a": (200, 0, 0)}), ignore=255)
    values = np.array([[0, 1, 255]], np.uint8)
    picture = overlay(np.zeros((1, 3, 3), np.uint8), values, labels, alpha=1)
    assert picture.tolist() == [[[0, 0, 0], [200, 0, 0], [128, 128, 128]]]


def test_labels_are_never_blended() -> None:
    data = np.random.default_rng(0).choice(np.array([0, 1, 40_000_001], np.int32), SHAPE)
    labels = Volume(data[None], Grid.from_spacing(SHAPE, (1, 1.7, 3.1)), "label")
    for plane in PLANES:
        assert set(np.unique(label_slice(labels, plane, pixel_mm=0.4))) <= {0, 1, 40_000_001}


def test_slices_are_counted_in_the_patients_frame() -> None:
    volume = dot((0, 0, 6)).reoriented("SLP")
    assert [slice_count(volume, plane) for plane in PLANES] == [7, 6, 5]
    assert slice_rgb(volume, "axial", 6, FULL).any()
    assert not slice_rgb(volume, "axial", 0, FULL).any()


def test_best_slice_has_most_foreground() -> None:
    data = np.zeros((1, *SHAPE), np.uint8)
    data[0, 1, :, 2:4] = 3
    data[0, :, 4, 3] = 2
    labels = Volume(data, Grid.from_spacing(SHAPE), "label")
    for axcodes in ("RAS", "LPI", "ASR"):
        turned = labels.reoriented(axcodes)
        assert (best_slice(turned, "sagittal"), best_slice(turned, "coronal"), best_slice(turned)) == (
            1,
            4,
            3,
        )
    assert best_slice(labels.with_data(data * 0), "coronal") == 3


def test_windows() -> None:
    values = np.array([-1000, -160, 40, 240, 3000], np.float32)
    volume = image(np.broadcast_to(values[:, None, None], (5, 4, 4)).copy())
    row = slice_rgb(volume, "axial", 0, "soft tissue")[0, ::-1, 0]
    assert row.tolist() == [0, 0, 128, 255, 255]
    assert window_of(volume) == WINDOWS["soft tissue"]  # air tells a CT
    assert window_of(volume, (10, 20)) == (10, 20)


def test_the_default_window_spans_the_percentiles() -> None:
    values = np.random.default_rng(0).normal(500, 100, (30, 30, 30)).astype(np.float32)
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 2] = 1e9, np.nan, np.inf
    level, width = window_of(image(values))
    assert level == pytest.approx(500, abs=5)
    assert width == pytest.approx(2 * 2.576 * 100, rel=0.05)
    assert np.isfinite(slice_rgb(image(values), "axial", 1)).all()


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_image_is_shown(value: float) -> None:
    picture = slice_rgb(image(np.full(SHAPE, value, np.float32)))
    assert picture.min() == picture.max()


def test_colour_images_keep_their_colours() -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 1)).astype(np.uint8)
    picture = slice_rgb(image(data))
    np.testing.assert_array_equal(picture, data[:, ::-1, ::-1, 0].transpose(2, 1, 0))


def test_channels_are_chosen() -> None:
    data = np.zeros((2, *SHAPE), np.float32)
    data[1] = 255
    assert not slice_rgb(image(data), window=FULL).any()
    assert slice_rgb(image(data), window=FULL, channel=1).all()
    with pytest.raises(ConfigError, match="channel: found 2, expected 0 to 1"):
        slice_rgb(image(data), channel=2)


def test_overlay_tints_and_outlines() -> None:
    labels = Labels.from_names({"a": 1, "b": 5}, {"a": (255, 0, 0), "b": (0, 0, 255)})
    grey = np.full((9, 9, 3), 100, np.uint8)
    values = np.zeros((9, 9), np.int16)
    values[2:7, 2:7] = 5
    result = overlay(grey, values, labels, alpha=0.5)
    assert result[0, 0].tolist() == [100, 100, 100]
    assert result[2, 2].tolist() == [0, 0, 255]
    assert result[4, 4].tolist() == [50, 50, 178]
    assert overlay(grey, values, labels, alpha=0.5, outline=False)[2, 2].tolist() == [50, 50, 178]
    np.testing.assert_array_equal(overlay(grey, values * 0, labels), grey)
    with pytest.raises(DataError, match="unknown label value: found 7"):
        overlay(grey, np.where(values == 5, 7, 0), labels)
    with pytest.raises(DataError, match="equal sizes"):
        overlay(grey, values[1:], labels)


def test_region_edges_separate_neighbours() -> None:
    values = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]])
    assert region_edges(values).tolist() == [[False, False, True, True, False, False]] * 3
    assert not region_edges(np.ones((3, 3), int)).any()  # the picture's border is no edge


def test_label_maps_are_brought_onto_the_image() -> None:
    base = image(np.zeros(SHAPE, np.float32), (1, 1, 2))
    data = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    labels = Volume(data[None], base.grid, "label")
    np.testing.assert_array_equal(labels_on_grid_of(base, labels.reoriented("LPI")).data, labels.data)
    floats = Volume(data[None].astype(np.float32), base.grid)
    np.testing.assert_array_equal(labels_on_grid_of(base, floats).data, labels.data)
    coarse = labels.resampled(spacing=(2, 2, 2))
    assert labels_on_grid_of(base, coarse).grid.matches(base.grid)
    with pytest.raises(DataError, match="one channel of integers"):
        labels_on_grid_of(base, floats.with_data(floats.data + 0.5))
    assert Labels.from_values(labels.data).names == ("background", "label_1", "label_2")


@pytest.mark.parametrize(
    ("plane", "index", "window", "message"),
    [
        ("axail", None, None, "unknown plane 'axail'. Did you mean 'axial'"),
        ("axial", 7, None, "axial slice: found 7, expected 0 to 6"),
        ("axial", -1, None, "found -1"),
        ("axial", 0, "bones", "unknown window 'bones'. Did you mean 'bone'"),
        ("axial", 0, (40, 0), "window: found width 0"),
    ],
)
def test_invalid_choices_raise(plane: Plane, index: int | None, window: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slice_rgb(dot((0, 0, 0)), plane, index, window)  # type: ignore[arg-type]


def test_a_real_ct_is_supine_with_the_liver_on_the_left() -> None:
    if not DATA.is_dir():
        pytest.skip("no shared data beside the checkout")
    ct = read(DATA / "ct_torso" / "example_ct.nii.gz")
    labels = read_labels(DATA / "ct_torso" / "labels.nii.gz")
    table = Labels.from_tsv(DATA / "ct_torso" / "labels.tsv")
    liver, spine = table.value_of("liver"), table.value_of("vertebrae_L1")

    def centre(value: int, plane: Plane) -> tuple[float, float]:
        index = best_slice(labels.with_data((labels.data == value).astype(np.uint8)), plane)
        picture = label_slice(labels, plane, index)
        assert picture.shape == slice_rgb(ct, plane, index).shape[:2]
        rows, columns = np.nonzero(picture == value)
        return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]

    assert centre(liver, "axial")[1] < 0.45
    assert centre(spine, "axial")[0] > 0.6
    assert centre(liver, "coronal")[0] < 0.4
    assert centre(spine, "sagittal")[1] > 0.5
