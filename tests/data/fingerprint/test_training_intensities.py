"""Statistics of training cases are the same whether they are read or taken from a fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.fingerprint import training_intensities as module
from medseg.data.fingerprint.training_intensities import training_intensities
from medseg.errors import CasesFailedError, DataError
from medseg.labels.label_table import Labels
from medseg.planning.fingerprint.measure import fingerprint


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_phantoms(tmp_path / "data", cases=4, shape=(16, 15, 14), spacing=(20, 20, 20))
    return read_dataset(tmp_path / "data")


@pytest.fixture
def known(tmp_path: Path, dataset: Dataset) -> Path:
    fingerprint(dataset).save(tmp_path / "fingerprint.json")
    return tmp_path / "fingerprint.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are read."""
    cases: list[str] = []
    plain = module.case_histograms

    def noted(case, **options):
        cases.append(case.id)
        return plain(case, **options)

    monkeypatch.setattr(module, "case_histograms", noted)
    return cases


def some(dataset: Dataset) -> Dataset:
    return dataset.subset(dataset.ids[:3])


def test_unchanged_cases_of_a_fingerprint_are_not_read(dataset, known, read):
    alone = training_intensities(some(dataset), dataset.labels, [0])
    assert read == list(dataset.ids[:3])
    read.clear()
    assert training_intensities(some(dataset), dataset.labels, [0], known=known) == alone
    assert read == []


def test_statistics_of_all_cases_are_those_of_the_fingerprint(dataset, known):
    (found,) = training_intensities(dataset, dataset.labels, [0]).values()
    assert (found,) == medseg.plan(dataset.root, cache=known).fingerprint.intensities


def test_changed_and_new_cases_are_read(dataset, known, read):
    case = dataset.cases[1]
    image = medseg.read(case.images[0])
    medseg.write(image.with_data(image.data + 7), case.images[0])
    changed = training_intensities(some(dataset), dataset.labels, [0], known=known)
    assert read == [case.id]
    assert changed == training_intensities(some(dataset), dataset.labels, [0])


@pytest.mark.parametrize("why", ["labels", "missing", "damaged", "channel"])
def test_other_measurements_are_not_used(dataset, known, read, why):
    labels = dataset.labels
    if why == "labels":
        others = dict(zip(labels.names, labels.values, strict=True))
        others["other"] = others.pop(labels.names[-1])
        labels = Labels.from_names(others)
    elif why == "missing":
        known.unlink()
    elif why == "damaged":
        known.write_text(known.read_text()[:-100])
    else:
        other = replace(dataset, channel_names=("image",))
        fingerprint(other).save(known)
    training_intensities(some(dataset), labels, [0], known=known)
    assert read == list(dataset.ids[:3])


def test_cases_that_cannot_be_read_are_listed(dataset):
    for case in dataset.cases[:2]:
        case.images[0].write_bytes(b"no image")
    with pytest.raises(CasesFailedError, match=r"2 of 4 cases cannot be used:\n.*000.*\n.*001"):
        training_intensities(dataset, dataset.labels, [0])


def test_no_foreground_at_all_is_refused(dataset):
    for case in dataset.cases:
        label = medseg.read_labels(case.label)
        medseg.write(label.with_data(np.zeros_like(label.data)), case.label)
    with pytest.raises(DataError, match="found no foreground voxel in any training case"):
        training_intensities(dataset, dataset.labels, [0])


def test_voxels_to_ignore_are_no_foreground(dataset):
    names = dict(zip(dataset.labels.names, dataset.labels.values, strict=True))
    ignored = names.pop(dataset.labels.names[-1])
    ignoring = replace(Labels.from_names(names), ignore=ignored)
    assert training_intensities(dataset, ignoring, [0]) != training_intensities(dataset, dataset.labels, [0])
