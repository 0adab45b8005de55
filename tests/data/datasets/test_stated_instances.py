"""Folders that state that their label maps are instance maps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import instance_phantom, write_instance_phantoms
from medseg.data.datasets.read_case import read_case_instances, read_case_label
from medseg.errors import DataError
from medseg.experiment.config import ExperimentConfig
from medseg.experiment.resolve_data import find_dataset, labels_of
from medseg.labels.components import connected_components


@pytest.fixture
def folder(tmp_path):
    write_instance_phantoms(tmp_path / "data", cases=2, count=3, shape=(24, 24, 20), radii=(3, 5))
    return tmp_path / "data"


def described(folder, **changes):
    file = folder / "dataset.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_ellipsoids_of_a_phantom_touch():
    _, ids = instance_phantom(4, count=8, shape=(48, 48, 48))
    assert len(np.unique(ids.data)) == 9
    assert connected_components(ids.data[0])[1] == 1


def test_label_maps_are_instance_maps_of_the_only_label(folder):
    dataset = read_dataset(folder)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "ellipsoid")
    for case in dataset.labelled_cases:
        assert case.label is None
        assert case.instances.parent.name == "labelsTr"
        ids = read_case_instances(case)
        assert set(np.unique(ids.data)) == {0, 1, 2, 3}
        assert np.array_equal(read_case_label(case, dataset.labels).data, ids.data > 0)


def test_a_folder_of_nnunet_states_it_in_the_same_way(folder):
    for place, mark in (("imagesTr", "_0000"), ("labelsTr", "")):
        for file in sorted((folder / place).iterdir()):
            file.rename(file.with_name(file.name.replace(".nii.gz", f"{mark}.nii.gz")))
    described(folder, file_ending=".nii.gz", channel_names={"0": "MR"}, labels={"background": 0, "cell": 1},
              training=None, test=None, modality=None, numTraining=2)  # fmt: skip
    dataset = read_dataset(folder)
    assert all(case.instances is not None for case in dataset.cases)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "cell")


def test_a_config_states_it_for_a_folder_that_does_not(folder):
    described(folder, instances=None)
    assert all(case.label is not None for case in read_dataset(folder).cases)
    experiment = ExperimentConfig.parse({"data": {"path": str(folder), "instances": True}})
    dataset = find_dataset(experiment, folder)
    assert all(case.instances is not None for case in dataset.cases)
    assert labels_of(experiment, dataset).names == ("background", "ellipsoid")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instances": "yes"}, "instances: found 'yes', expected true"),
        ({"labels": {"0": "background", "1": "a", "2": "b"}}, "instances: found instance maps and the labels background, a, b"),
    ],
)  # fmt: skip
def test_what_cannot_be_instances_is_refused(folder, changes, message):
    described(folder, **changes)
    with pytest.raises(DataError, match=message):
        read_dataset(folder)
