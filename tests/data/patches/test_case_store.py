"""The store of prepared cases: made once, made whole, made anew when anything changes."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from medseg.data.datasets.phantom import PHANTOM_LABELS, write_phantoms
from medseg.data.patches.case_store import MAPS, StoredCase, fill_store
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import DataError, DiskFullError
from medseg.labels.label_sets import LabelSets
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
    monkeypatch.setattr("medseg.data.patches.case_store.prepare", None)  # calling it would fail
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
    os.utime(image, ns=(1, 1))
    (touched, *_) = fill(store, dataset)
    assert len({case.folder for case in (first, other_spacing, other_labels, touched)}) == 4


def test_a_case_in_another_format_of_the_store_is_prepared_again(tmp_path, dataset, monkeypatch):
    """A newer medseg may have written the store: its cases stay, and this one stores its own next to them."""
    monkeypatch.setattr("medseg.data.patches.case_store.FORMAT", 99)
    newer = fill(tmp_path / "store", dataset)
    monkeypatch.undo()
    own = fill(tmp_path / "store", dataset)
    assert {case.folder for case in own}.isdisjoint(case.folder for case in newer)
    assert all(case.folder.is_dir() for case in (*own, *newer))


def test_folder_of_slices_is_identified_by_its_files(tmp_path, dataset):
    from dataclasses import replace

    from medseg.data.patches.case_store import _key

    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"1")
    case = replace(dataset.cases[0], images=(folder,))
    label_sets = LabelSets.from_annotations(PHANTOM_LABELS)
    before = _key(case, label_sets, SETTINGS)
    assert _key(case, label_sets, SETTINGS) == before
    (folder / "1.dcm").write_bytes(b"12")  # the folder's own time stays
    assert _key(case, label_sets, SETTINGS) != before


def test_an_interrupted_write_leaves_nothing(tmp_path, dataset, monkeypatch):
    store = tmp_path / "store"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.data.patches.case_store.write_text", full)
    with pytest.raises(DiskFullError, match=r"cannot be written \(No space left on device\)"):
        fill(store, dataset)
    assert list(store.iterdir()) == []
    monkeypatch.undo()
    assert len(fill(store, dataset)) == 3


def test_two_runs_that_prepare_the_same_case_at_once_agree(tmp_path, dataset, monkeypatch):
    """The other process is ready between our check and our rename."""
    import shutil

    from medseg.data.patches import case_store as module

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
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted(
        case.folder.name for case in cases
    )


def test_a_case_that_cannot_be_read_is_named(tmp_path, dataset):
    dataset.cases[1].images[0].write_bytes(b"\x1f\x8bno")
    stored = fill_store(tmp_path / "store", dataset.cases, PHANTOM_LABELS, SETTINGS)
    assert next(stored).id == "phantom_000"
    with pytest.raises(DataError, match=r"phantom_001\.nii\.gz"):
        next(stored)


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
        for name in ("image", "label"):
            np.save(case.folder / f"{name}.npy", np.full((1, 2, 2, 2), number, np.float32))
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
