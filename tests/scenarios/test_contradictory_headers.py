"""Headers that contradict themselves or belong to another image, through the commands that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.main import main
from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import DataWarning, format_warning
from medseg.experiment.experiment import Experiment
from tests.helpers.nifti_files import patched

pytestmark = pytest.mark.slow

CODES = 252  # offset of qform_code and sform_code


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "data", cases=2, shape=(16, 14, 12), spacing=(20, 20, 24), oblique=False)
    return tmp_path / "data"


def files(dataset: Path) -> list[Path]:
    return sorted(dataset.glob("*Tr/*.nii.gz"))


def printed(capsys: Any, *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return code, found.out + found.err


def test_files_without_codes_need_a_decision_that_the_plan_keeps(
    dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    for file in files(dataset):
        patched(file, CODES, bytes(4))
    target = tmp_path / "plan.yaml"
    for command in (
        ("inspect", dataset),
        ("plan", dataset, "-o", target),
        ("evaluate", files(dataset)[-1], files(dataset)[-1]),
    ):
        code, text = printed(capsys, *command)
        assert code in (1, 2)
        assert "qform_code and sform_code: found 0 and 0" in text
        assert "--orientation-from" in text
        assert "Traceback" not in text
    assert printed(capsys, "inspect", dataset, "--orientation-from", "sform")[0] == 0
    label = files(dataset)[-1]
    assert printed(capsys, "evaluate", label, label, "--orientation-from", "sform")[0] == 0
    code, _ = printed(
        capsys, "plan", dataset, "-o", target, "--orientation-from", "sform", "--device", "cuda"
    )
    assert code == 0
    assert Experiment.load(target).config.data.reading == ReadingOptions("sform", False)


def test_a_contradiction_is_printed_in_one_line(dataset: Path, capsys: Any) -> None:
    file = files(dataset)[0]
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 11.6
    image.set_qform(affine, code=1)
    nib.save(image, file)
    with pytest.warns(DataWarning, match="corners up to 11.6 mm apart"):
        code, _ = printed(capsys, "inspect", file)
    assert code == 0
    text = format_warning("a.nii: sform and qform: found ...", DataWarning, "files.py", 1)
    assert text == "warning: a.nii: sform and qform: found ...\n"


def test_labels_with_the_header_of_another_image_can_be_trusted(
    dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    for file in sorted(dataset.glob("labelsTr/*.nii.gz")):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), np.diag([-1.0, -1, 1, 1])), file)
    plan = ("plan", dataset, "--device", "cuda", "-o", tmp_path / "plan.yaml")
    code, text = printed(capsys, *plan)
    assert code == 1
    assert "--trust-label-array (data.trust_label_array in a config)" in text
    assert printed(capsys, *plan, "--trust-label-array")[0] == 0
    assert Experiment.load(tmp_path / "plan.yaml").config.data.trust_label_array


def test_microns_written_as_mm_are_refused_before_work(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    for file in files(dataset):
        image = nib.load(file)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([20, 20, 24, 1]) @ image.affine), file)
    code, text = printed(capsys, "plan", dataset, "-o", tmp_path / "plan.yaml")
    assert code == 1
    assert text.count("voxel size: found 400x400x576 mm, expected at most 100 mm. Check the units") == 2
