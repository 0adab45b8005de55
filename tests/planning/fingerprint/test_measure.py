"""What is measured on files, in one process and in several, and when it is measured again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import psutil
import pytest

from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.layouts import read_dataset
from medseg.data.fingerprint.fingerprint import Fingerprint, saved_fingerprint
from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.planning.fingerprint.measure import fingerprint
from medseg.volumes.grid import Grid
from tests.helpers.golden_plans import HIPPOCAMPUS


def case_of(shape, box, label_box, seed=0):
    """An image that is 0 but in `box`, and a label map that is 1 in `label_box`."""
    image = np.zeros((1, *shape), np.int16)
    image[(0, *box)] = np.random.default_rng(seed).integers(1, 500, image[(0, *box)].shape)
    label = np.zeros(shape, np.uint8)
    label[label_box] = 1
    return image, label


def test_case_is_measured_in_patient_orientation(write_table):
    """Stored as PIR with spacing 3, 2, 1.5: all axes change place on the way to RAS."""
    stored = Grid.from_spacing((12, 8, 10), (1.5, 3.0, 2.0)).reoriented("PIR")
    assert stored.shape == (8, 10, 12)
    box, inner = (slice(1, 7), slice(2, 6), slice(3, 12)), (slice(2, 4), slice(3, 5), slice(4, 9))
    image, label = case_of(stored.shape, box, inner)
    folder = write_table({"one": (image, label)}, [stored])
    found = fingerprint(read_dataset(folder))
    (case,) = found.cases
    assert case.orientation == "PIR"
    assert case.shape == (12, 8, 10)
    assert case.spacing == pytest.approx((1.5, 3.0, 2.0))
    assert case.shape_after_crop == (9, 6, 4)
    assert case.relative_size == pytest.approx(9 * 6 * 4 / (12 * 8 * 10))
    assert case.label_voxels == {1: 20}
    assert case.label_ml(1) == pytest.approx(20 * 9 / 1000)
    assert case.foreground_fraction == pytest.approx(20 / 960)
    assert case.ranges == ((0.0, float(image.max())),)
    inside = image[0][label == 1]
    assert case.foreground[0].mean == pytest.approx(inside.mean())
    assert found.labels == {"background": 0, "label_1": 1}
    assert not found.named


def test_foreground_is_measured_per_channel_and_empty_cases_give_none(write_table):
    rng = np.random.default_rng(3)
    images = rng.normal(50, 10, (2, 2, 6, 5, 4)).astype(np.float32)
    label = np.zeros((6, 5, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 7
    cases = {"a": (images[0], label), "b": (images[1], np.zeros_like(label))}
    found = fingerprint(read_dataset(write_table(cases)))
    assert found.channel_names == ("c0", "c1")
    assert found.cases[1].foreground == ()
    for channel in (0, 1):
        expected = images[0, channel][label == 7]
        assert found.intensities[channel].mean == pytest.approx(expected.mean(), rel=1e-6)
        assert found.intensities[channel].std == pytest.approx(expected.std(), rel=1e-5)
    assert found.labels == {"background": 0, "label_7": 7}
    assert any(finding.code == "empty-cases" and finding.cases == ("b",) for finding in found.findings)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(phantoms):
    dataset, told = read_dataset(phantoms), []
    alone = fingerprint(dataset, progress=lambda done, total, case: told.append((done, total, case)))
    assert told == [(n + 1, 6, case.id) for n, case in enumerate(alone.cases)]
    told.clear()
    assert fingerprint(dataset, executor=CaseExecutor(2), progress=lambda *news: told.append(news)) == alone
    assert [done for done, _, _ in told] == list(range(1, 7))
    assert {case for _, _, case in told} == set(dataset.ids)


@pytest.mark.slow
def test_an_interrupt_ends_the_processes(phantoms):
    def stop(done, total, case):
        raise KeyboardInterrupt

    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        fingerprint(read_dataset(phantoms), executor=CaseExecutor(2), progress=stop)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_it_is_stored_and_used_again_until_a_file_changes(phantoms, tmp_path):
    folder, cache = tmp_path / "data", tmp_path / "fingerprint.json"
    shutil.copytree(phantoms, folder)
    first, told = fingerprint(read_dataset(folder)), []
    first.save(cache)
    assert Fingerprint.read(cache) == first

    def measured() -> int:
        told.clear()
        again = fingerprint(read_dataset(folder), cache=cache, progress=lambda *news: told.append(news))
        assert [case.shape for case in again.cases] == [case.shape for case in first.cases]
        return len(told)

    assert measured() == 0
    image = folder / "imagesTr" / "phantom_002.nii.gz"
    assert image.is_file()
    image.touch()
    assert measured() == 0
    before, content = image.stat(), image.read_bytes()
    rewritten = bytearray(content)
    rewritten[4] ^= 1  # a byte of the time in the header of gzip, which is not checked
    image.write_bytes(rewritten)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image.stat().st_mtime_ns == before.st_mtime_ns
    assert measured() == 6
    first.save(cache)
    image.write_bytes(content)
    assert measured() == 0
    moved = tmp_path / "moved"
    folder.rename(moved)
    folder = moved
    assert measured() == 0
    cache.write_text("{}")
    assert saved_fingerprint(cache) is None
    assert measured() == 6


def test_a_newer_fingerprint_is_refused_by_name_and_not_used_as_a_cache(phantoms, tmp_path):
    dataset, cache = read_dataset(phantoms), tmp_path / "fingerprint.json"
    fingerprint(dataset).save(cache)
    cache.write_text(cache.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(
        DataError, match=r"fingerprint\.json: format: found 3, expected 2, because a newer medseg"
    ):
        Fingerprint.read(cache)
    measured = []
    fingerprint(dataset, cache=cache, progress=lambda *news: measured.append(news))
    assert len(measured) == 6


def test_other_labels_are_not_taken_from_the_cache(phantoms, tmp_path):
    dataset, cache = read_dataset(phantoms), tmp_path / "fingerprint.json"
    fingerprint(dataset).save(cache)
    assert dataset.labels is not None
    names = {
        f"{name}_x" if value else name: value
        for name, value in zip(dataset.labels.names, dataset.labels.values, strict=True)
    }
    renamed = replace(dataset, labels=Labels.from_names(names))
    assert set(fingerprint(renamed, cache=cache).labels) == set(names)


def test_all_broken_cases_are_listed_at_once(write_table):
    good = case_of((6, 6, 6), (slice(0, 6),) * 3, (slice(1, 3),) * 3)
    folder = write_table(dict.fromkeys(("a", "b", "c"), good))
    (folder / "b_image.nii.gz").write_bytes(b"no image")
    (folder / "c_label.nii.gz").write_bytes((folder / "a_label.nii.gz").read_bytes()[:40])
    with pytest.raises(DataError, match="2 of 3 cases cannot be used") as caught:
        fingerprint(read_dataset(folder))
    assert "b_image.nii.gz" in str(caught.value)
    assert "c_label.nii.gz" in str(caught.value)


def test_datasets_without_labels_are_refused(write_table):
    image, label = case_of((6, 6, 6), (slice(0, 6),) * 3, (slice(1, 3),) * 3)
    folder = write_table({"a": (image, np.zeros_like(label))})
    with pytest.raises(DataError, match="found no labelled voxel in any of 1 case"):
        fingerprint(read_dataset(folder))
    (folder / "cases.tsv").write_text("case\timage\na\ta_image.nii.gz\n")
    with pytest.raises(DataError, match="found no case with a label map among 1"):
        fingerprint(read_dataset(folder))


def test_intensities_that_single_precision_cannot_hold_are_refused(write_table):
    image, label = case_of((6, 6, 6), (slice(0, 6),) * 3, (slice(1, 3),) * 3)
    huge = image.astype(np.float64) * 1e300
    with pytest.raises(DataError, match=r"case a: found"):
        fingerprint(read_dataset(write_table({"a": (huge, label)})))


@pytest.mark.slow
def test_hippocampus_is_measured_as_nnunet_measures_it(shared_data):
    found = fingerprint(read_dataset(shared_data / "Task04_Hippocampus"))
    assert [list(case.shape_after_crop[::-1]) for case in found.cases] == HIPPOCAMPUS["shapes"]
    assert found.median_relative_size == HIPPOCAMPUS["relative"]
    (here,), there = found.intensities, HIPPOCAMPUS["intensities"]
    assert (here.low, here.high) == (there["min"], there["max"])
    for name in ("mean", "std", "median", "percentile_00_5", "percentile_99_5"):  # theirs are of a sample
        assert getattr(here, name) == pytest.approx(there[name], rel=2e-3)


def test_regions_and_ignored_voxels_are_known_to_the_plan(write_table):
    """Ignored voxels are no foreground; the planner counts its labels as nnU-Net does, both included."""
    rng = np.random.default_rng(3)
    image = rng.normal(50, 10, (1, 6, 5, 4)).astype(np.float32)
    label = np.zeros((6, 5, 4), np.uint8)
    label[1:3], label[3:5] = 1, 9
    folder = write_table({"a": (image, label)})
    table = folder / "labels.tsv"
    labels = Labels.from_names({"a": 1, "b": 2})
    table.write_text(labels.to_tsv().replace("\n2\t", "\n9\t"))
    found = fingerprint(read_dataset(folder), cache=folder / "fingerprint.json")
    assert (found.num_outputs, found.counted_labels) == (3, 3)
    found.save(folder / "fingerprint.json")
    table.write_text(replace(labels.with_regions({"both": [1, 2]}), ignore=9).to_tsv())
    found = fingerprint(read_dataset(folder), cache=folder / "fingerprint.json")  # measured anew
    assert (found.regions, found.ignore) == (("both",), 9)
    assert (found.num_outputs, found.counted_labels) == (1, 3)
    (case,) = found.cases
    assert case.label_voxels == {1: 40}
    assert case.foreground[0].mean == pytest.approx(image[0][label == 1].mean())
    assert Fingerprint.parse(found.to_plain()) == found
