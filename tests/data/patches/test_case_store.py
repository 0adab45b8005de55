"""The store of prepared cases: each case is prepared once, completely, and again when anything changes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

import medseg
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import PHANTOM_LABELS, write_phantoms
from medseg.data.datasets.read_case import read_case_image
from medseg.data.patches.case_store import MAPS, StoredCase
from medseg.data.patches.prepare_cases import INDEX, fill_store
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import DataError, DiskFullError
from medseg.labels.label_table import Labels

SETTINGS = Preprocessing(channels=(Normalization(),))


@pytest.fixture
def dataset(tmp_path):
    return write_phantoms(tmp_path / "data", cases=3, shape=(12, 11, 10), spacing=(25, 26, 26))


def fill(folder, dataset, labels=PHANTOM_LABELS, settings=SETTINGS):
    return list(fill_store(folder, dataset.cases, labels, settings))


def test_a_case_is_prepared_once(tmp_path, dataset, monkeypatch):
    first = fill(tmp_path / "store", dataset)
    stamps = {case.folder: case.folder.stat().st_mtime_ns for case in first}
    monkeypatch.setattr("medseg.data.patches.prepare_cases.prepare", None)  # calling it would fail
    assert fill(tmp_path / "store", dataset) == first
    assert {case.folder: case.folder.stat().st_mtime_ns for case in first} == stamps


def test_arrays_are_mapped_and_fit_together(tmp_path, dataset):
    for case in fill(tmp_path / "store", dataset):
        assert isinstance(case.image, np.memmap)
        assert isinstance(case.label, np.memmap)
        assert (case.image.dtype, case.label.dtype) == (np.float32, np.uint8)
        assert case.image.shape == (1, *case.shape)
        assert case.label.shape == (1, *case.shape)
        assert case.image.mean() == pytest.approx(0, abs=1e-4)
        for value, voxels in case.class_locations.items():
            assert (case.label[0][tuple(voxels.T)] == value).all()
            assert len(voxels) == (case.label == value).sum()
        assert set(case.class_locations) == set(np.unique(case.label)) - {0}


def test_anything_that_changes_the_result_prepares_the_case_again(tmp_path, dataset):
    store = tmp_path / "store"
    (first, *_) = fill(store, dataset)
    (other_spacing, *_) = fill(store, dataset, settings=SETTINGS.replace(spacing=(30, 30, 30)))
    (other_labels, *_) = fill(
        store, dataset, labels=Labels.from_names({"all": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6})
    )
    image = dataset.cases[0].images[0]
    volume = medseg.read(image)
    medseg.write(volume.with_data(volume.data + 1), image)
    (other_image, *_) = fill(store, dataset)
    assert len({case.folder for case in (first, other_spacing, other_labels, other_image)}) == 4


@pytest.fixture
def uncompressed(dataset):
    """A case whose files have one size, whatever their content."""
    case = dataset.cases[0]
    image, label = case.images[0].with_name("image.nii"), case.images[0].with_name("label.nii")
    medseg.write(medseg.read(case.images[0]), image)
    medseg.write(medseg.read_labels(case.label), label)
    return replace(case, images=(image,), label=label)


def mirrored_unnoticed(file, read=medseg.read):
    """Mirror the voxels of a file, but keep its size and modification time."""
    before, volume = file.stat(), read(file)
    medseg.write(volume.with_data(np.ascontiguousarray(volume.data[:, ::-1])), file.with_name("other.nii"))
    file.write_bytes(file.with_name("other.nii").read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, uncompressed, kind):
    (first,) = fill_store(tmp_path / "store", [uncompressed], PHANTOM_LABELS, SETTINGS)
    before = np.array(getattr(first, kind))
    if kind == "image":
        mirrored_unnoticed(uncompressed.images[0])
    else:
        mirrored_unnoticed(uncompressed.label, medseg.read_labels)
    (again,) = fill_store(tmp_path / "store", [uncompressed], PHANTOM_LABELS, SETTINGS)
    assert again.folder != first.folder
    assert not np.array_equal(getattr(again, kind), before)


def test_voxels_and_spacings_in_other_files_count(tmp_path, uncompressed):
    image = medseg.read(uncompressed.images[0])
    nibabel = pytest.importorskip("nibabel")
    pair = tmp_path / "pair.hdr"
    nibabel.save(nibabel.Nifti1Pair(image.data[0], image.grid.affine), pair)
    case = replace(uncompressed, images=(pair,))
    (first,) = fill_store(tmp_path / "store", [case], PHANTOM_LABELS, SETTINGS)
    voxels = pair.with_suffix(".img")
    voxels.write_bytes(voxels.read_bytes()[::-1])
    (again,) = fill_store(tmp_path / "store", [case], PHANTOM_LABELS, SETTINGS)
    assert again.folder != first.folder


def test_touched_copied_and_moved_files_reuse_the_prepared_case(tmp_path, dataset, monkeypatch):
    first = fill(tmp_path / "store", dataset)
    monkeypatch.setattr("medseg.data.patches.prepare_cases.prepare", None)  # calling it would fail
    dataset.cases[0].images[0].touch()
    assert fill(tmp_path / "store", dataset) == first
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert fill(tmp_path / "store", read_dataset(tmp_path / "copy")) == first
    (tmp_path / "data").rename(tmp_path / "moved")
    assert fill(tmp_path / "store", read_dataset(tmp_path / "moved")) == first


def test_unchanged_files_are_not_read_again(tmp_path, dataset, monkeypatch):
    first = fill(tmp_path / "store", dataset)
    monkeypatch.setattr("medseg.storage.file_state._content", lambda _: pytest.fail("read"))
    assert fill(tmp_path / "store", dataset) == first


def test_a_lost_index_costs_only_time(tmp_path, dataset):
    first = fill(tmp_path / "store", dataset)
    (tmp_path / "store" / INDEX).write_text("{")
    assert fill(tmp_path / "store", dataset) == first
    assert json.loads((tmp_path / "store" / INDEX).read_text())["files"]


def test_files_are_identified_by_their_part_in_the_case(tmp_path, uncompressed):
    """A label map that becomes the image, and two channels in the other order, are other cases."""
    a, b = uncompressed.images[0], uncompressed.label
    settings = Preprocessing(channels=(Normalization(), Normalization()))
    cases = [replace(uncompressed, images=images) for images in ((a, b), (b, a))]
    folders = {
        stored.folder
        for case in cases
        for stored in fill_store(tmp_path / "store", [case], PHANTOM_LABELS, settings)
    }
    assert len(folders) == 2


def test_a_file_that_changes_while_it_is_prepared_is_refused(tmp_path, uncompressed, monkeypatch):
    def changing(case):
        image = read_case_image(case)
        mirrored_unnoticed(case.images[0])
        return image

    monkeypatch.setattr("medseg.data.patches.prepare_cases.read_case_image", changing)
    with pytest.raises(
        DataError, match=r"image\.nii: changed while case phantom_000 was prepared\. Start again"
    ):
        list(fill_store(tmp_path / "store", [uncompressed], PHANTOM_LABELS, SETTINGS))
    assert [path.name for path in (tmp_path / "store").iterdir()] == [INDEX]


def test_a_missing_file_is_named(tmp_path, dataset):
    dataset.cases[0].images[0].unlink()
    with pytest.raises(DataError, match=r"phantom_000.*cannot be read \(No such file or directory\)"):
        fill(tmp_path / "store", dataset)


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "cut in its header": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "empty": lambda file: file.write_bytes(b""),
    "other content": lambda file: file.write_bytes(b"<html>" * 100),
    "missing": lambda file: file.unlink(),
    "one axis": lambda file: np.save(file, np.zeros(3, np.float32)),
    "text": lambda file: np.save(file, np.full((1, 2, 3, 4), "a")),
    "another shape": lambda file: np.save(file, np.load(file)[:, 1:]),
    "no folder": lambda file: shutil.rmtree(file.parent),
}


@pytest.mark.parametrize("name", ["image", "label", "locations"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stored_case_is_named_with_the_remedy(tmp_path, dataset, name, damage):
    (case, *_) = fill(tmp_path / "store", dataset)
    file = case.folder / f"{name}.npy"
    DAMAGES[damage](file)
    if damage == "no folder":
        assert fill(tmp_path / "store", dataset)[0] == case
    elif (name, damage) != ("locations", "another shape"):
        name = "label" if damage == "another shape" else name  # the one of two that is named
        with pytest.raises(
            DataError, match=rf"{name}\.npy: .*Delete the folder {case.folder} and start or resume"
        ):
            fill(tmp_path / "store", dataset)


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d != "another shape"])
def test_an_array_that_is_lost_during_a_run_is_named(tmp_path, dataset, damage):
    (case, *_) = fill(tmp_path / "store", dataset)
    DAMAGES[damage](case.folder / "image.npy")
    with pytest.raises(
        DataError, match=rf"image\.npy: .*Delete the folder {case.folder} and start or resume"
    ):
        _ = case.image


def test_lost_instances_are_not_a_case_without_instances(tmp_path, dataset):
    case = replace(dataset.cases[0], instances=dataset.cases[0].label)
    (stored,) = fill_store(tmp_path / "store", [case], PHANTOM_LABELS, SETTINGS)
    (stored.folder / "instances.npy").unlink()
    with pytest.raises(DataError, match=r"instances\.npy: missing"):
        list(fill_store(tmp_path / "store", [case], PHANTOM_LABELS, SETTINGS))
    assert pickle.loads(pickle.dumps(stored)).has_instances


def test_a_case_in_another_format_of_the_store_is_prepared_again(tmp_path, dataset, monkeypatch):
    """A newer medseg may have written the store: its cases stay, and this one stores its own next to them."""
    monkeypatch.setattr("medseg.data.patches.prepare_cases.FORMAT", 99)
    newer = fill(tmp_path / "store", dataset)
    monkeypatch.undo()
    own = fill(tmp_path / "store", dataset)
    assert {case.folder for case in own}.isdisjoint(case.folder for case in newer)
    assert all(case.folder.is_dir() for case in (*own, *newer))


def test_a_folder_of_slices_is_identified_by_its_files(tmp_path):
    from medseg.data.patches.prepare_cases import _state
    from medseg.storage.content_index import ContentIndex

    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"1")
    index = ContentIndex(tmp_path / INDEX)
    before = _state(folder)
    index.add([folder], before)
    assert _state(folder) == index.known([folder]) == before
    (folder / "1.dcm").write_bytes(b"12")  # the folder's own time stays
    assert index.known([folder]) is None
    assert _state(folder).content != before.content


def test_an_interrupted_write_leaves_nothing(tmp_path, dataset, monkeypatch):
    store = tmp_path / "store"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.data.patches.prepare_cases.write_text", full)
    with pytest.raises(DiskFullError, match=r"cannot be written \(No space left on device\)"):
        fill(store, dataset)
    assert {path.name for path in store.iterdir()} <= {INDEX}
    monkeypatch.undo()
    assert len(fill(store, dataset)) == 3


def test_two_runs_that_prepare_the_same_case_at_once_agree(tmp_path, dataset, monkeypatch):
    """The other process is ready between our check and our rename."""
    import shutil

    from medseg.data.patches import prepare_cases as module

    ready = fill(tmp_path / "other", dataset)
    plain = module.write_text

    def late(path, text):
        plain(path, text)
        for case in ready:
            target = tmp_path / "store" / case.folder.name
            if not target.exists():
                shutil.copytree(case.folder, target)

    monkeypatch.setattr(module, "write_text", late)
    cases = fill(tmp_path / "store", dataset)
    assert sorted(path.name for path in (tmp_path / "store").glob("phantom_*")) == sorted(
        case.folder.name for case in cases
    )


def test_a_stored_case_travels_to_a_worker_without_its_arrays(tmp_path, dataset):
    case = fill(tmp_path / "store", dataset)[0]
    assert case.image.size + case.label.size > 1000
    packed = pickle.dumps(case)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert again == case
    assert np.array_equal(again.image, case.image)


def test_more_cases_than_file_descriptors(tmp_path):
    """Some systems grant 256."""
    resource = pytest.importorskip("resource")
    cases = [StoredCase(f"case_{number}", tmp_path / f"{number}") for number in range(150)]
    for number, case in enumerate(cases):
        case.folder.mkdir()
        for name, dtype in (("image", np.float32), ("label", np.uint8)):
            np.save(case.folder / f"{name}.npy", np.full((1, 2, 2, 2), number, dtype))
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + MAPS + 20, limits[1]))
    try:
        for _ in range(2):
            for number, case in enumerate(cases):
                assert case.shape == (2, 2, 2)
                assert (case.image == number).all()
                assert (case.label == number).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_stored_case_is_a_value():
    from pathlib import Path

    assert StoredCase("a", Path("b")) == StoredCase("a", Path("b"))
