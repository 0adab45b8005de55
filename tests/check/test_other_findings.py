"""Findings that the dataset with planted faults does not show."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.check.check_paths import check_paths
from medseg.check.finding import Finding
from medseg.cli.main import main
from medseg.io.files import write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.planted_faults import (
    AFFINE,
    arrays,
    describe,
    image_file,
    label_file,
    name,
    save,
    write_clean,
)


def found(*paths: Path) -> list[Finding]:
    return list(check_paths(paths).findings)


def only(*paths: Path) -> Finding:
    (finding,) = found(*paths)
    return finding


@pytest.mark.parametrize(("degrees", "code"), [(15, "AXES_SHEARED"), (50, "AFFINE_INVALID")])
def test_sheared_axes(tmp_path: Path, degrees: float, code: str) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 2 * np.tan(np.radians(degrees))
    save(tmp_path / "a.nii.gz", arrays(0)[0], sheared, qform=0)
    assert only(tmp_path / "a.nii.gz").code == code


def test_an_affine_that_is_not_finite(tmp_path: Path) -> None:
    broken = AFFINE.copy()
    save(tmp_path / "a.nii", arrays(0)[0], broken, qform=0)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:284] = np.float32(np.nan).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    finding = only(tmp_path / "a.nii")
    assert finding.code == "AFFINE_INVALID"
    assert "nan" in finding.found


def test_bytes_after_the_voxels(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", arrays(0)[0])
    with (tmp_path / "a.nii").open("ab") as file:
        file.write(bytes(7))
    finding = only(tmp_path / "a.nii")
    assert finding.code == "READER_NOTE"
    assert finding.found.startswith("7 bytes after the voxels")


def test_a_contradictory_header_field(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", arrays(0)[0])
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[72:74] = np.int16(8).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    finding = only(tmp_path / "a.nii")
    assert (finding.code, finding.field) == ("HEADER_CONTRADICTORY", "bitpix")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    assert only(tmp_path / "a.nii").code == "FILE_UNREADABLE"


def test_a_truncated_nrrd(tmp_path: Path) -> None:
    image = Volume(arrays(0)[0][None], Grid.from_spacing(arrays(0)[0].shape))
    write(image, tmp_path / "a.nrrd")
    whole = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(whole[: len(whole) // 2])
    assert only(tmp_path / "a.nrrd").code == "FILE_DAMAGED"


def test_ct_under_another_name(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=3)
    for number in range(3):
        ct = arrays(number)[0]
        ct[arrays(number)[2] == 2] = 900
        save(root / image_file(number), ct)
    describe(root, channel_names={"0": "MR", "1": "PET"})
    finding = only(root)
    assert (finding.code, finding.field) == ("CT_NAMED_OTHERWISE", "channel MR")


def test_a_windowed_ct_among_others(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=4)
    save(root / image_file(2), np.clip(arrays(2)[0], -160, 240))
    finding = only(root)
    assert (finding.code, finding.file) == ("CT_WITHOUT_AIR", image_file(2))


def test_a_label_that_is_not_annotated_in_a_case(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=2)
    training = json.loads((root / "dataset.json").read_text())["training"]
    training[1]["labels"] = ["liver"]
    describe(root, training=training)
    finding = only(root)
    assert (finding.code, finding.case) == ("LABEL_NOT_ANNOTATED", name(1))
    assert "value 2 (tumour)" in finding.found


def test_another_number_of_channels(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=2)
    training = json.loads((root / "dataset.json").read_text())["training"]
    del training[1]["image"][1]
    describe(root, training=training)
    (root / "splits_final.json").unlink()
    findings = found(root)
    assert [(one.code, one.file) for one in findings] == [
        ("CHANNEL_COUNT_DIFFERS", image_file(1)),
        ("FILE_NOT_LISTED", image_file(1, 1)),
    ]
    assert (findings[0].found, findings[0].expected) == ("1", "2 (CT, PET)")


def test_cases_without_a_label_map(tmp_path: Path) -> None:
    root = write_clean(tmp_path / "set", cases=3)
    training = json.loads((root / "dataset.json").read_text())["training"]
    del training[2]["label"]
    (root / label_file(2)).unlink()
    describe(root, training=training, numTraining=2)
    finding = only(root)
    assert (finding.code, finding.cases) == ("CASE_UNLABELLED", (name(2),))


@pytest.mark.parametrize("declared", [True, False])
def test_cases_without_a_label_map_whose_subjects_have_others(tmp_path: Path, declared: bool) -> None:
    names = ["a", "b", "c"] if declared else ["p1_a", "p2_a", "p1_b"]
    lines = ["case\timage\tlabel" + "\tsubject" * declared]
    for number, case in enumerate(names):
        for kind, data in zip(("image", "label"), (arrays(number)[0], arrays(number)[2]), strict=True):
            save(tmp_path / f"{case}_{kind}.nii.gz", data)
        label = f"{case}_label.nii.gz" if number < 2 else ""
        lines.append(f"{case}\t{case}_image.nii.gz\t{label}" + f"\tperson {number % 2}" * declared)
    (tmp_path / "cases.tsv").write_text("\n".join(lines) + "\n")
    (finding,) = [one for one in found(tmp_path) if one.code == "TEST_SHARES_SUBJECT"]
    assert finding.cases == (names[2],)
    assert finding.found == f"1 case: {names[2]} ({names[2]} is of the subject of {names[0]})"


@pytest.mark.parametrize(("low", "code"), [(-1, "INSTANCES_INVALID"), (0, None)])
def test_instance_maps(tmp_path: Path, low: int, code: str | None) -> None:
    for folder, data in (("images", arrays(0)[0]), ("instances", arrays(0)[2].astype(np.int16))):
        (tmp_path / folder).mkdir()
        data.ravel()[0] = min(low, data.ravel()[0])
        save(tmp_path / folder / "a.nii.gz", data)
    assert [one.code for one in found(tmp_path)] == ([code] if code else [])


def test_a_damaged_dicom_series(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "IM1").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    assert only(folder).code == "DICOM_SERIES_INVALID"


def test_unknown_layouts_and_missing_splits_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_clean(tmp_path / "set", cases=1)
    assert main(["check", str(root), "--layout", "msdd"]) == 1
    assert "Did you mean 'msd'?" in capsys.readouterr().err
    assert main(["check", str(root), "--splits", str(tmp_path / "no.json")]) == 1
    assert "no.json: no such file" in capsys.readouterr().err


def test_an_hdr_without_its_img(tmp_path: Path) -> None:
    save(tmp_path / "a.img", arrays(0)[0])
    shutil.move(tmp_path / "a.img", tmp_path / "b.img")
    finding = only(tmp_path / "a.hdr")
    assert (finding.code, finding.found) == ("FILE_DAMAGED", "no file a.img")
