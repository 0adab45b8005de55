"""Simulated properties of macOS and Windows: missing POSIX modules, spawned workers, case-insensitive names, paths."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.names import path_inside
from medseg.errors import ConfigError, DataError
from medseg.inference.cohort.output_files import OutputFiles
from medseg.io.probability_files import reading_probabilities, writing_probabilities
from medseg.storage import portable_names
from medseg.storage.lock import RunLock
from tests.helpers.children import start_program
from tests.helpers.runs import MakeExperiment

IMPORT_ALL = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import lightning_fabric, monai, psutil, torch, transformers  # they check for the system themselves
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in [name for name in sys.modules if name.partition(".")[0] == "medseg"]:
    del sys.modules[name]  # loaded before the others were hidden
import medseg
for module in pkgutil.walk_packages(medseg.__path__, "medseg."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("imported")
"""


@pytest.mark.slow
def test_no_module_needs_posix(tmp_path: Path) -> None:
    (tmp_path / "import_all.py").write_text(IMPORT_ALL)
    printed, errors = start_program(tmp_path / "import_all.py").communicate(300)
    assert printed.strip().endswith("imported"), errors


def test_a_run_is_locked_without_posix_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with RunLock(tmp_path):
        assert (tmp_path / "lock").is_file()
    assert not (tmp_path / "lock").exists()


def test_probabilities_are_written_without_posix_fallocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_volume
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    like = make_volume((4, 3, 2), kind="label")
    with writing_probabilities(tmp_path / "p.nii", like, {"a": 1.0, "b": 0.0}) as file:
        file.array(2)[:] = file.encoded(np.full((2, 4, 3, 2), 0.5))
    assert len(list(reading_probabilities(tmp_path / "p.nii"))) == 2


@pytest.mark.slow
def test_spawned_workers_cut_the_same_patches(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """macOS and Windows start workers by spawn, so that a dataset must survive pickling."""
    patches = make_experiment("train.steps=2").trainer(tmp_path / "run").patches.train
    (found,) = DataLoader(
        torch.utils.data.Subset(patches, [1]), batch_size=1, num_workers=1, multiprocessing_context="spawn"
    )
    torch.testing.assert_close(found["image"][0], patches[1]["image"], rtol=0, atol=0)


def test_outputs_that_differ_in_case_are_refused_where_case_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("A", (tmp_path / "in" / "A.nii.gz",)), Case("a", (tmp_path / "in" / "a.nii.gz",))]
    outputs = OutputFiles(tmp_path / "out")
    label_maps = [outputs.label_map_path(case.id) for case in cases]
    outputs.check_targets(cases, label_maps)
    monkeypatch.setattr("medseg.inference.cohort.output_files.ignores_case", lambda folder: True)
    with pytest.raises(ConfigError, match="two images with this output file"):
        outputs.check_targets(cases, label_maps)


def test_a_folder_with_an_alias_in_other_case_ignores_case(tmp_path: Path) -> None:
    (tmp_path / "Folder").mkdir()
    assert not portable_names.ignores_case(tmp_path / "Folder" / "new")
    (tmp_path / "fOLDER").symlink_to(tmp_path / "Folder")  # simulates a file system that ignores case
    assert portable_names.ignores_case(tmp_path / "Folder" / "new")


@pytest.mark.parametrize("name", ["C:\\data\\a.nii.gz", "..\\a.nii.gz", "../a.nii.gz", "/a.nii.gz"])
def test_paths_of_other_systems_do_not_leave_the_dataset(tmp_path: Path, name: str) -> None:
    try:
        found = path_inside(tmp_path, name, "dataset.json")
    except DataError:
        return
    assert found.parent == tmp_path  # on this system a backslash is a letter of the name


def test_a_failed_write_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_volume) -> None:
    """Windows refuses to replace a file that another program has open."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DataError, match=r"a\.nii"):
        medseg.write(make_volume(), tmp_path / "a.nii")
