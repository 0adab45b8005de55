"""Held-out cases without reference instances: components of their label maps count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.data.datasets.cases import Case
from medseg.experiment import held_out
from medseg.experiment.run_folder import RunFolder
from medseg.io.companions.instance_files import instance_map_path
from tests.helpers.nifti_files import save


@pytest.mark.parametrize("with_maps", [False, True])
def test_components_of_the_reference_are_its_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_maps: bool
) -> None:
    label = np.zeros((6, 5, 4), np.uint8)
    label[0, 0, 0], label[4, 3, 2] = 5, 7
    case = Case("a", (tmp_path / "image.nii",), label=save(tmp_path / "label.nii", label))
    unlabelled = Case("b", (tmp_path / "image.nii",))
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for file in files if with_maps else ():
        instance_map_path(file).touch()
    monkeypatch.setattr(RunFolder, "read_experiment", lambda run: None)
    monkeypatch.setattr(held_out, "dataset_of_run", lambda run: None)
    monkeypatch.setattr(held_out, "labels_of", lambda experiment, dataset: None)
    monkeypatch.setattr(held_out, "held_out_cases", lambda run, reading: [case, unlabelled])
    monkeypatch.setattr(held_out, "_predictions", lambda run, cases: files)
    (pair,), _ = held_out.held_out_instances(RunFolder(tmp_path))
    assert pair.case == "a"
    if not with_maps:
        assert (pair.prediction, pair.reference, pair.components_of) == (files[0], case.label, "both")
        return
    assert (pair.prediction, pair.components_of) == (instance_map_path(files[0]), "neither")
    found = pair.reference()
    assert found.values == {1: 5, 2: 7}
    assert found.ids.data.max() == 2
