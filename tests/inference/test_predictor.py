"""From a file to a label map on the file's own grid: every orientation, spacing, crop and shear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import ConfigError, DataError, ModelError
from medseg.inference.cohort.batch import predict_files
from medseg.inference.predictor import Predictor, load
from medseg.model_folder.folder import save_model
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.volumes import ORIENTATIONS, small_phantom

LABELS = medseg.Labels.from_names({"background": 0, "liver": 5, "spleen": 7, "tumour": 300})  # of the fixture


def as_ras(volume: Volume) -> np.ndarray:
    return volume.reoriented("RAS").data


@pytest.fixture(params=["3d", "2d axial", "2d sagittal"])
def predictor(request, make_predictor):
    if request.param == "3d":
        return make_predictor()
    return make_predictor(2, slice_axis=2 if "axial" in request.param else 0)


@pytest.mark.parametrize("size", [0, -1, "0GB"])
@pytest.mark.parametrize("field", ["max_memory", "max_device_memory"])
def test_a_limit_without_any_memory_is_refused(make_predictor, field, size):
    predictor = make_predictor()
    with pytest.raises(ConfigError, match=f"{field}: found "):
        Predictor(predictor.model, predictor.saved, predictor.labels, device="cpu", **{field: size})


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "spacing"), [(3, None), (2, (26.0, 19.0, 30.0))])
def test_every_orientation_gives_the_same_labels_on_its_own_grid(make_predictor, dims, spacing):
    predictor = make_predictor(dims, spacing=spacing, overlap=0.25, batch_size=12)
    image = small_phantom()
    expected = predictor(image).data
    assert len(np.unique(expected)) > 2  # else there is nothing to tell orientations apart by
    assert not np.array_equal(expected, np.flip(expected, 1))
    for axcodes in ORIENTATIONS:
        turned = image.reoriented(axcodes)
        labels = predictor(turned)
        assert labels.grid.axcodes == axcodes
        assert labels.grid.affine.tobytes() == turned.grid.affine.tobytes()
        assert np.array_equal(as_ras(labels), expected), axcodes


def test_labels_are_values_of_the_table_in_the_smallest_type(predictor):
    labels = predictor(small_phantom())
    assert labels.is_label
    assert labels.data.dtype == np.uint16
    assert set(np.unique(labels.data)) <= {0, 5, 7, 300}
    assert len(np.unique(labels.data)) > 2


def test_written_and_read_back_with_the_same_affine_bits(predictor, tmp_path):
    for number, (image, _) in enumerate(
        phantom_case(seed, "mr", (12, 11, 10), (20, 20, 30)) for seed in range(4)
    ):
        source, target = tmp_path / f"{number}.nii.gz", tmp_path / f"{number}_labels.nii.gz"
        medseg.write(image, source)
        labels = predictor(source)
        medseg.write(labels, target)
        again, original = medseg.read_labels(target), medseg.read(source)
        assert again.grid.affine.tobytes() == original.grid.affine.tobytes()
        assert np.array_equal(again.data, labels.data)
        assert again.grid.shape == original.grid.shape
        for name in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_y"):
            assert np.array_equal(again.header[name], original.header[name])


@pytest.mark.slow
def test_real_file_in_sixteen_orientations(make_predictor, shared_data):
    """The same brain in 16 voxel orders, at its own spacing, resampled, and without the crop."""
    files = sorted((shared_data / "odd_nifti").glob("orient_*.nii.gz"))
    assert len(files) == 16
    predictor = make_predictor(
        spacing=(6, 6, 7), window=(16, 16, 16), overlap=0, labels=medseg.Labels.from_names({"a": 1, "b": 2})
    )
    expected = None
    for file in files:
        image = medseg.read(file)
        labels = predictor(file)
        assert labels.grid.affine.tobytes() == image.grid.affine.tobytes()
        assert labels.grid.axcodes == file.name[7:10]
        expected = as_ras(labels) if expected is None else expected
        assert len(np.unique(expected)) > 1
        assert (as_ras(labels) != expected).mean() == 0, file.name


@pytest.mark.parametrize("crop", [True, False])
def test_real_file_at_its_own_spacing(make_predictor, shared_data, crop):
    folder = shared_data / "odd_nifti"
    predictor = make_predictor(window=(32, 32, 32), overlap=0, crop=crop)
    one, other = (predictor(folder / f"orient_{code}.nii.gz") for code in ("RAS", "PLI"))
    assert one.grid.shape == (64, 79, 67)
    assert other.grid.axcodes == "PLI"
    assert np.array_equal(as_ras(one), as_ras(other))


@pytest.mark.filterwarnings("ignore:.*from a right angle:medseg.errors.DataWarning")
def test_sheared_file_keeps_its_affine(make_predictor, shared_data, tmp_path):
    image = medseg.read(shared_data / "odd_nifti" / "shear.nii.gz").cropped((140, 200, 20), (24, 20, 10))
    medseg.write(image, tmp_path / "shear.nii.gz")
    read = medseg.read(tmp_path / "shear.nii.gz")
    assert read.grid.shear > 0.3
    labels = make_predictor()(tmp_path / "shear.nii.gz")
    medseg.write(labels, tmp_path / "labels.nii.gz")
    assert medseg.read(tmp_path / "labels.nii.gz").grid.affine.tobytes() == read.grid.affine.tobytes()


@pytest.mark.filterwarnings("ignore:.*from a right angle:medseg.errors.DataWarning")
@pytest.mark.parametrize("kind", ["oblique", "sheared", "left-handed", "far away"])
@pytest.mark.parametrize("spacing", [None, (1.7, 2.1, 3.3)])
def test_unusual_grids_are_restored(make_predictor, kind, spacing):
    """Labels depend on voxels and spacing alone, so an upright grid of the same spacing is the reference."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(1, 13, 11, 9)).astype(np.float32)
    base = np.diag([1.5, 2.0, 3.0, 1.0])
    turn = np.eye(4)
    if kind == "oblique":
        a, b = 0.4, -0.3
        x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
        turn[:3, :3] = x @ z
    affine = turn @ base
    if kind == "sheared":
        affine[1, 2] = 1.0
        affine[:3, 2] *= 3.0 / np.linalg.norm(affine[:3, 2])
    if kind == "left-handed":
        affine[0] = -affine[0]
    if kind == "far away":
        affine[:3, 3] = (1e5, -2e5, 3e4)
    grid = Grid((13, 11, 9), affine)
    predictor = make_predictor(spacing=spacing)
    labels = predictor(Volume(voxels, grid))
    assert labels.grid is grid or labels.grid == grid
    flipped = voxels[:, ::-1] if kind == "left-handed" else voxels
    upright = predictor(
        Volume(np.ascontiguousarray(flipped), Grid.from_spacing((13, 11, 9), (1.5, 2.0, 3.0)))
    )
    expected = upright.data[:, ::-1] if kind == "left-handed" else upright.data
    assert len(np.unique(expected)) > 2
    assert (labels.data == expected).mean() > 0.999  # spacings differ in the last digit


def test_resampling_moves_nothing(make_predictor):
    """A half-bright image is labelled along the same border whatever the network's spacing."""
    data = np.full((1, 24, 20, 16), 10.0, np.float32)
    data[:, 12:] = 200.0
    image = Volume(data, Grid.from_spacing((24, 20, 16), (1.0, 1.2, 1.5)))

    class Bright(torch.nn.Module):
        def forward(self, batch):
            return torch.cat([-batch, batch, batch - 100, batch - 100], dim=1)

    for spacing in (None, (2.0, 2.4, 3.0), (0.7, 0.7, 0.7)):
        predictor = make_predictor(spacing=spacing)
        predictor.network.volumetric = Bright()
        labels = predictor(image)
        assert np.array_equal(labels.data == 5, data > 100), spacing


def test_crop_is_undone(make_predictor):
    inner = small_phantom()
    # Air is not 0 in CT, so the box of non-zero voxels is the phantom itself.
    assert (inner.data != 0).all(axis=0).mean() > 0.5
    before, after = (3, 0, 2), (1, 4, 5)
    padded = inner.padded(before, after)
    predictor = make_predictor()
    whole = predictor(padded)
    assert whole.grid == padded.grid
    shape = inner.grid.shape
    assert np.array_equal(whole.cropped(before, shape).data, predictor(inner).data)
    outside = np.ones(padded.grid.shape, bool)
    outside[tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))] = False
    assert not whole.data[0][outside].any()


@pytest.mark.parametrize("shape", [(3, 5, 4), (20, 3, 9), (16, 16, 1), (1, 1, 1), (1, 9, 17)])
def test_images_smaller_than_the_window_and_single_slices(predictor, shape):
    image = Volume(
        np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), Grid.from_spacing(shape)
    )
    labels = predictor(image)
    assert labels.data.shape == (1, *shape)


@pytest.mark.parametrize("value", [0, -1000, 7])
def test_constant_image_is_predicted(predictor, value):
    labels = predictor(Volume(np.full((1, 9, 8, 7), value, np.int16), Grid.from_spacing((9, 8, 7))))
    assert labels.data.shape == (1, 9, 8, 7)


def test_several_channels_from_one_file_several_files_and_a_case(make_predictor, make_volume, tmp_path):
    predictor = make_predictor(channels=3)
    image = make_volume((10, 9, 8), channels=3)
    expected = predictor(image)
    medseg.write(image, tmp_path / "all.nii.gz")
    paths = [tmp_path / f"{index}.nii.gz" for index in range(3)]
    for index, path in enumerate(paths):
        medseg.write(image.with_data(image.data[index : index + 1]), path)
    for source in (tmp_path / "all.nii.gz", paths, [str(path) for path in paths], Case("c", tuple(paths))):
        assert np.array_equal(predictor(source).data, expected.data)
    swapped = predictor(paths[::-1])
    assert not np.array_equal(swapped.data, expected.data)


def test_wrong_number_of_channels_and_nan_are_refused(make_predictor, make_volume, tmp_path):
    medseg.write(make_volume(channels=2), tmp_path / "two.nii.gz")
    with pytest.raises(
        DataError,
        match=r"two\.nii\.gz: channels: found 2 \(two\.nii\.gz\), expected 1 \(.+\)\. Give one file per channel",
    ):
        make_predictor()(tmp_path / "two.nii.gz")
    image = make_volume()
    data = image.data.copy()
    data[0, 0, 0, :2] = (np.nan, np.inf)
    with pytest.raises(DataError, match="found NaN or infinity in 2 voxels"):
        make_predictor()(image.with_data(data))


def test_keep_largest_leaves_one_component_of_the_named_label(make_predictor):
    from scipy import ndimage

    touching = np.ones((3, 3, 3))
    noise = np.random.default_rng(0).normal(size=(1, 20, 20, 16)).astype(np.float32)
    image = Volume(noise, Grid.from_spacing((20, 20, 16)))
    before = make_predictor()(image).data[0]
    counts = {label.name: ndimage.label(before == label.value, touching)[1] for label in LABELS.foreground}
    name = max(counts, key=lambda name: counts[name])
    assert counts[name] > 1
    after = make_predictor(keep_largest=[name])(image).data[0]
    value = LABELS.value_of(name)
    components, _ = ndimage.label(after == value, touching)
    sizes = np.bincount(components.ravel())[1:]
    assert 0 < len(sizes) < counts[name]
    assert len(set(sizes)) == 1
    assert np.array_equal(before[before != value], after[before != value])


def test_keep_largest_foreground_comes_before_the_labels(make_predictor):
    data = np.zeros((1, 12, 8, 8), np.uint16)
    data[0, 0:4, 0:3, 0:3] = 5
    data[0, 4:6, 0:3, 0:3] = 7  # both touch: the largest together
    data[0, 6:7, 0:1, 0:1] = 5  # touches them, but not the other 5
    data[0, 8:11, 4:8, 4:8] = 7  # the largest 7, apart
    labels = Volume(data, Grid.from_spacing((12, 8, 8)), "label")

    def after(**settings):
        return make_predictor(**settings).post_processed(labels).data[0]

    assert np.array_equal(after(), data[0])
    together = np.where(np.arange(12)[:, None, None] < 8, data[0], 0)
    assert np.array_equal(after(keep_largest_foreground=True), together)
    both = after(keep_largest_foreground=True, keep_largest=["liver", "spleen"])
    assert np.array_equal(both, np.where(np.arange(12)[:, None, None] < 6, data[0], 0))
    assert ((after(keep_largest=["spleen"]) == 7).sum(), (both == 7).sum()) == (48, 18)


def test_an_unknown_label_to_clean_is_refused_before_any_work(make_predictor):
    with pytest.raises(DataError, match=r"unknown label 'splen'\. Did you mean 'spleen'"):
        make_predictor(keep_largest=["splen"])


def test_window_progress_is_reported(make_predictor):
    seen = []
    make_predictor(batch_size=3)(
        small_phantom(), progress=lambda done, total, what: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] == 12
    assert [done for done, _ in seen] == [3, 6, 9, 12]


def test_settings_can_be_changed(make_predictor):
    predictor = make_predictor()
    changed = predictor.with_settings(overlap=0.75, mirror_axes=(0, 1))
    assert (changed.settings.overlap, changed.settings.mirror_axes) == (0.75, (0, 1))
    assert predictor.settings.overlap == 0.5
    image = small_phantom()
    assert not np.array_equal(changed(image).data, predictor(image).data)
    two = make_predictor(2)
    assert np.array_equal(two.with_settings(batch_size=7)(image).data, two(image).data)


def test_mapping_is_merged_into_the_stored_settings(make_predictor, tmp_path):
    predictor = make_predictor(link={"min_iou": 0.4, "max_gap_slices": 3})
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    link = load(tmp_path / "model", link={"min_slices": 2}).settings.link
    assert (link.min_iou, link.max_gap_slices, link.min_slices) == (0.4, 3, 2)


def test_repr(make_predictor):
    assert repr(make_predictor(2)) == (
        "Predictor(toy: unet_2d, 1 channel(s) -> 4 classes, window 8x8x1, cpu, float32)"
    )


def test_a_model_folder_gives_the_same_labels(make_predictor, tmp_path):
    for dims in (2, 3):
        predictor = make_predictor(dims)
        save_model(tmp_path / f"{dims}", predictor.model, predictor.saved, predictor.labels)
        again = load(tmp_path / f"{dims}", device="cpu")
        image = small_phantom()
        assert np.array_equal(again(image).data, predictor(image).data)
        assert load(tmp_path / f"{dims}", device="cpu", overlap=0.25).settings.overlap == 0.25


def test_weights_that_are_not_finite_are_refused(make_predictor, tmp_path):
    predictor = make_predictor()
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(float("nan"))
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    with pytest.raises(ModelError, match="weights that are NaN or infinite"):
        load(tmp_path / "model")


def test_running_statistics_that_are_not_finite_are_refused(make_predictor, tmp_path):
    predictor = make_predictor()
    options = {"channels": [4, 8], "num_blocks": 1, "norm": "batch"}
    model = medseg.build_model("unet_3d", in_channels=1, num_classes=predictor.labels.num_outputs, **options)
    saved = predictor.saved.replace(model={"name": "unet_3d", **options})
    next(buffer for name, buffer in model.named_buffers() if name.endswith("running_var")).fill_(torch.inf)
    save_model(tmp_path / "model", model, saved, predictor.labels)
    with pytest.raises(ModelError, match="weights that are NaN or infinite"):
        load(tmp_path / "model")


@pytest.mark.parametrize("place", ["prepare", "run"])
def test_image_larger_than_memory_does_not_stop_the_others(
    make_predictor, make_volume, tmp_path, monkeypatch, place
):
    predictor, pairs = make_predictor(), []
    for name in "abc":
        medseg.write(make_volume((9, 9, 9)), tmp_path / f"{name}.nii.gz")
        pairs.append((Case(name, (tmp_path / f"{name}.nii.gz",)), tmp_path / "out" / f"{name}.nii.gz"))
    works, calls = getattr(predictor, place), []

    def fails_once(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("Unable to allocate 9. TiB")
        return works(*args, **options)

    monkeypatch.setattr(predictor, place, fails_once)
    outcomes = list(predict_files(predictor, pairs))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "b: found too little memory (Unable to allocate 9. TiB)" in str(outcomes[1].error)
