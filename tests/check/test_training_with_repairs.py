"""Ten planted faults are repaired without changing a file; a training then gives the predictions of the clean dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.main import main
from medseg.data.datasets.repairs import Repairs
from medseg.io.files import read_labels
from medseg.train.reports.reporting import read_metrics
from tests.helpers.planted_faults import (
    AFFINE,
    arrays,
    image_file,
    label_file,
    name,
    patch_header,
    save,
    write_clean,
)
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]
pytestmark = pytest.mark.slow

CONFIG = """\
name: repaired
data: {path: DATA, folds: 2}
model: {name: unet_3d, channels: [4, 8], num_blocks: 1}
patch: {size: [16, 16, 16]}
train: {steps: 6, report_every: 1, validation_batches: 1, workers: 0}
"""
CASES = 12


def plant_ten(root: Path) -> None:
    """Plant ten faults that can be repaired when files are read: four headers, three grids, three of label values."""
    patch_header(root / image_file(0), qform_code=0, sform_code=0)
    patch_header(root / image_file(1), qoffset_x=30.0)
    patch_header(root / image_file(2), qform_code=0, pixdim=[1, 1, 1, 1])
    patch_header(root / image_file(3), qform_code=1, srow_x=[1.5, 0, 0, 0])
    shifted = AFFINE.copy()
    shifted[2, 3] = 12.0
    save(root / label_file(4), arrays(4)[2], shifted)
    save(root / label_file(5), arrays(5)[2], AFFINE @ np.diag([2.0, 2.0, 2.0, 1.0]))
    save(root / label_file(6), arrays(6)[2], np.diag([-1.5, -1.5, 3.0, 1.0]))
    save(root / label_file(7), arrays(7)[2].astype(np.float32) * np.float32(0.97))
    save(root / label_file(8), arrays(8)[2].astype(np.float32) + np.float32(0.04))
    unknown = arrays(9)[2]
    unknown[unknown == 2] = 255
    save(root / label_file(9), unknown)


def train(root: Path, run: Path, *words: str) -> bytes:
    run.parent.mkdir()
    config = run.with_suffix(".yaml")
    config.write_text(CONFIG.replace("DATA", str(root)))
    assert main(["train", str(config), "--run", str(run), *words]) == 0
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The clean dataset, the one with ten faults, and the file of its repairs."""
    folder = tmp_path_factory.mktemp("ten")
    clean, broken = (write_clean(folder / which, CASES) for which in ("clean", "broken"))
    plant_ten(broken)
    repairs = folder / "repairs.yaml"
    assert main(["check", str(broken), "--repair", str(repairs)]) == 2
    return clean, broken, repairs


def test_each_fault_has_a_repair_and_no_case_is_left_out(folders: tuple[Path, Path, Path]) -> None:
    repairs = Repairs.load(folders[2]).repairs
    assert [repair.case for repair in repairs] == [name(number) for number in range(10)]
    assert Counter(repair.action for repair in repairs) == {
        "read_orientation_from": 4,
        "take_image_grid": 3,
        "round_values": 2,
        "map_values": 1,
    }


def test_a_training_with_repairs_predicts_what_one_on_the_clean_dataset_does(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    clean, broken, repairs = folders
    expected = train(clean, tmp_path / "a" / "clean")
    found = train(broken, tmp_path / "b" / "broken", "--repairs", str(repairs))
    assert found == expected
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("a/clean", "b/broken")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    images = [str(clean / image_file(11, channel)) for channel in (0, 1)]
    for run in ("a/clean", "b/broken"):
        out = tmp_path / run / "out"
        assert main(["predict", str(tmp_path / run / "model"), *images, "-o", str(out)]) == 0
    labels = [
        read_labels(next((tmp_path / run / "out").glob("*.nii.gz"))).data for run in ("a/clean", "b/broken")
    ]
    assert np.array_equal(*labels)


def test_a_repair_of_a_changed_file_is_refused(
    folders: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, broken, repairs = folders
    path = broken / label_file(7)
    before = path.read_bytes()
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj).copy()
        data[0, 0, 0] = 0.97
        nib.save(nib.Nifti1Image(data, image.affine), path)
        config = tmp_path / "c.yaml"
        config.write_text(CONFIG.replace("DATA", str(broken)))
        words = ["train", str(config), "--run", str(tmp_path / "run"), "--repairs", str(repairs)]
        assert main(words) == 1
        told = capsys.readouterr().err
        assert name(7) in told
        assert label_file(7).split("/")[1] in told
        assert not (tmp_path / "run").exists()
    finally:
        path.write_bytes(before)
