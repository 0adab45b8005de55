"""Relatives of reported faults of whole commands: memory, damaged runs, repeated interruptions, unnoticed changes, full disks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.main import main
from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataWarning
from medseg.experiment.experiment import Experiment
from medseg.planning.fingerprint.measure import fingerprint
from medseg.train.reports.reporting import read_metrics
from tests.helpers.nifti_files import save
from tests.helpers.runs import files_of_at_most, single_thread, toy_experiment, write_toy_data

__all__ = ["single_thread"]

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and a finished run of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_toy_data(folder, 4)
    experiment = toy_experiment(folder, "train.steps=4", folds=2, report_every=2, validate_every=2)
    list(experiment.trainer(folder / "run"))
    return folder


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_case_beyond_the_memory_does_not_end_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    from medseg.evaluation.label_maps import evaluate_cases

    plain = evaluate_cases.compare_label_maps

    def compare(*volumes: Any, case: str, **options: Any) -> Any:
        if case == "b":
            raise error
        return plain(*volumes, case=case, **options)

    monkeypatch.setattr(evaluate_cases, "compare_label_maps", compare)
    (tmp_path / "maps").mkdir()
    for name in "abc":
        save(tmp_path / "maps" / f"{name}.nii", np.ones((4, 4, 4), np.uint8))
    words = ["evaluate", str(tmp_path / "maps"), str(tmp_path / "maps"), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "b: found too little memory (" in printed.err
    assert "1 of 3 cases could not be evaluated" in printed.out
    assert len((tmp_path / "out" / "cases.tsv").read_text().splitlines()) == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda best: flip(best / "model.safetensors"),
        lambda best: (best / "manifest.json").unlink(),
        shutil.rmtree,
    ],
)
def test_a_damaged_best_model_is_named_and_written_again(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    damage(run / "best")
    with pytest.warns(
        DataWarning, match=r"best: found it damaged or missing, expected the model of the best"
    ):
        assert main(["train", "--resume", str(run), "--extend", "2"]) == 0
    assert main(["check", str(run / "best")]) == 0


def test_a_newer_checkpoint_of_another_format_is_named(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    shutil.rmtree(run / "model")
    manifest = max((run / "last").iterdir()) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.warns(
        DataWarning, match=r"a newer medseg wrote this file.*Training goes on from step-0000002"
    ):
        assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.parametrize("ends", [(1, 2), (2, 3), (1, 3)])
def test_a_row_of_metrics_counts_the_steps_before_two_interruptions(
    trained: Path, tmp_path: Path, ends: tuple[int, ...]
) -> None:
    options = ("train.steps=4", "train.save_every=1", "train.gradient_accumulation=2")
    experiment = toy_experiment(trained, *options, folds=2, report_every=4)
    list(experiment.trainer(tmp_path / "whole"))
    run = tmp_path / "run"
    for number, end in enumerate(ends):
        interrupt(experiment, run, end, resume=number > 0)
    list(experiment.trainer(run, resume=True))
    (row,), (expected,) = (read_metrics(folder / "metrics.jsonl") for folder in (run, tmp_path / "whole"))
    for name in ("step", "loss", "lr", "loss_terms"):
        assert row.get(name) == expected.get(name)


def interrupt(experiment: Experiment, run: Path, end: int, *, resume: bool) -> None:
    """Train up to a step, whose state is saved."""
    trainer = experiment.trainer(run, resume=resume)
    plain = trainer._save

    def stop(meter: Any) -> None:
        plain(meter)
        if trainer.step == end:
            raise KeyboardInterrupt

    trainer._save = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(trainer)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the voxels of an uncompressed file, but neither its size nor its times."""
    before = path.stat()
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(change(voxels).astype(voxels.dtype), image.affine, image.header), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.fixture
def plain_dataset(tmp_path: Path) -> Path:
    """A dataset of uncompressed files."""
    root = tmp_path / "data"
    for number in range(4):
        data = RNG.integers(0, 900, (18, 18, 18)).astype(np.int16)
        for folder, voxels in (("images", data), ("labels", (data > 600).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / folder / f"c{number}.nii")
    (root / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tliver\n")
    return root


def test_a_changed_label_map_of_the_same_time_and_size_is_prepared_again(
    plain_dataset: Path, tmp_path: Path
) -> None:
    experiment = toy_experiment(tmp_path, "train.steps=1", folds=2, report_every=1)
    list(experiment.trainer(tmp_path / "one"))
    for path in (plain_dataset / "labels").iterdir():
        rewrite(path, lambda voxels: voxels[::-1])
    list(experiment.trainer(tmp_path / "two"))
    one, two = ((tmp_path / name / "prepared.json").read_text() for name in ("one", "two"))
    assert one != two


def test_a_changed_image_of_the_same_time_and_size_is_measured_again(
    plain_dataset: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "fingerprint.json"
    first = fingerprint(read_dataset(plain_dataset), cache=cache)
    assert fingerprint(read_dataset(plain_dataset), cache=cache) == first
    rewrite(plain_dataset / "images" / "c0.nii", lambda voxels: voxels + 500)
    assert fingerprint(read_dataset(plain_dataset), cache=cache) != first


def test_a_changed_image_of_the_same_time_and_size_is_predicted_again(trained: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for path in sorted((trained / "data" / "imagesTr").iterdir())[:2]:
        nib.save(nib.load(path), images / path.name.removesuffix(".gz"))
    words = ["predict", str(trained / "run" / "model"), str(images), "-o", str(out), "--device", "cpu"]
    assert main(words) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    rewrite(images / "phantom_000.nii", lambda voxels: voxels[::-1])
    assert main([*words, "--skip-existing"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert [before[name] != after[name] for name in sorted(before)] == [True, False]


@pytest.mark.parametrize(
    "words",
    [
        "train CONFIG --run OUT/one",
        "train CONFIG --run OUT/all --all-folds",
        "view IMAGE -o OUT/v.html",
        "predict MODEL IMAGE -o OUT --suffix .nrrd --device cpu",
    ],
)
@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_a_limit_of_file_sizes_ends_every_command_with_code_4(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    names = {
        "MODEL": trained / "run" / "model",
        "CONFIG": trained / "run" / "config.yaml",
        "IMAGE": trained / "data" / "imagesTr" / "phantom_000.nii.gz",
        "OUT": tmp_path,
    }
    for name, path in names.items():
        words = words.replace(name, str(path))
    with files_of_at_most(100):
        assert main(words.split()) == 4
    told = capsys.readouterr().err
    assert "cannot be written (File too large). Raise the limit of file sizes" in told
    assert "Traceback" not in told
