"""The scripts, called in-process as a user would call them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.phantom import PHANTOM_LABELS, write_phantoms
from medseg.data.datasets.read_case import read_case_label
from medseg.errors import DataError
from medseg.io.files import read, read_labels, write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.paths import ROOT

DICOM = ROOT.parent / "shared" / "data" / "dicom"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "data_scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "data_scripts").glob("*.py")), ids=lambda path: path.stem)
def test_help_says_what_a_script_does(path, capsys):
    with pytest.raises(SystemExit) as caught:
        script(path.stem).main(["--help"])
    assert caught.value.code == 0
    assert f"python data_scripts/{path.name}" in capsys.readouterr().out


# fetch_msd_task -------------------------------------------------------------------------------------------


@pytest.fixture(name="task_archive")
def _task_archive(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "source", 2, shape=(12, 10, 8))
    archive = tmp_path / "given.tar"
    with tarfile.open(archive, "w") as target:
        target.add(tmp_path / "source", "Task09_Spleen")
    return archive


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Opener:
    """Stands for the network."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open(self, url: str, timeout: float) -> Any:
        assert url.startswith("https://")
        assert timeout > 0
        answer = io.BytesIO(self.content)
        answer.headers = Message()  # type: ignore[attr-defined]
        return answer


@pytest.mark.parametrize("name", ["9", "spleen", "Task09_Spleen", "SPLEEN"])
def test_local_archive(tmp_path, task_archive, name, capsys):
    arguments = [name, "--archive", str(task_archive), "--out", str(tmp_path / "data")]
    assert script("fetch_msd_task").main([*arguments, "--sha256", sha256(task_archive)]) == 0
    assert "2 labelled cases, channels CT" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Task09_Spleen"]
    assert script("fetch_msd_task").main(arguments) == 1
    assert "found an existing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spleem", "--archive", "given.tar"], "Did you mean 'spleen'"),
        (["spleen"], "exactly one of --archive and --url"),
        (["spleen", "--archive", "given.tar", "--url", "https://x"], "exactly one of --archive and --url"),
        (["spleen", "--archive", "absent.tar"], "no such file"),
        (["spleen", "--archive", "given.tar", "--sha256", "0" * 64], "SHA-256: found"),
        (["liver", "--archive", "given.tar"], "found no Task03_Liver/dataset.json"),
        (["spleen", "--url", "https://x"], "--sha256: found None, expected 64 hexadecimal digits"),
        (["spleen", "--url", "http://x", "--sha256", "0" * 64], "expected an https address"),
        (["spleen", "--url", "file:///etc/hosts", "--sha256", "0" * 64], "expected an https address"),
    ],
)
def test_fetch_that_cannot_work(tmp_path, task_archive, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    assert script("fetch_msd_task").main([*arguments, "--out", "data"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert not list((tmp_path / "data").glob("*"))


def test_download(tmp_path, task_archive, monkeypatch):
    module = script("fetch_msd_task")
    monkeypatch.setattr(module, "_opener", lambda: Opener(task_archive.read_bytes()))
    arguments = ["spleen", "--url", "https://example.org/t.tar", "--out", str(tmp_path / "data")]
    assert module.main([*arguments, "--sha256", "0" * 64]) == 1
    assert not list((tmp_path / "data").iterdir())  # a file of another hash is not kept
    assert module.main([*arguments, "--sha256", sha256(task_archive).upper()]) == 0
    assert len(read_dataset(tmp_path / "data" / "Task09_Spleen").cases) == 2


def test_download_without_network(tmp_path, monkeypatch, capsys):
    class Broken:
        def open(self, url: str, timeout: float) -> Any:
            raise urllib.error.URLError("no route")

    module = script("fetch_msd_task")
    monkeypatch.setattr(module, "_opener", Broken)
    arguments = ["spleen", "--url", "https://example.org/t.tar", "--sha256", "0" * 64]
    assert module.main([*arguments, "--out", str(tmp_path / "data")]) == 1
    assert "the download failed" in capsys.readouterr().err


def test_redirects_stay_on_https():
    module = script("fetch_msd_task")
    request = urllib.request.Request("https://example.org/a")
    handler = module._HttpsOnly()
    arguments = (request, None, 302, "Found", Message())
    assert handler.redirect_request(*arguments, "https://example.org/b").full_url == "https://example.org/b"
    with pytest.raises(DataError, match="https"):
        handler.redirect_request(*arguments, "http://example.org/b")


# convert_totalsegmentator ---------------------------------------------------------------------------------


@pytest.fixture(name="organs")
def _organs(tmp_path: Path) -> Path:
    """Two subjects; in the second, liver and spleen share 2 voxels and there is no spine."""
    root = tmp_path / "source"
    phantoms = write_phantoms(tmp_path / "phantoms", 2, shape=(24, 20, 12))
    for number, case in enumerate(phantoms.cases):
        subject = root / f"s{number:04d}"
        label = read_labels(case.label)
        write(read(case.images[0]), subject / "ct.nii.gz")
        for organ in PHANTOM_LABELS.foreground:
            mask = (label.data == organ.value).astype(np.uint8)
            if number == 1 and organ.name == "spleen":
                mask[tuple(np.argwhere(label.data == 1)[:2].T)] = 1
            if number == 0 or organ.name != "spine":
                write(
                    label.with_data(mask).reoriented("LPS"),
                    subject / "segmentations" / f"{organ.name}.nii.gz",
                )
    return root


@pytest.mark.parametrize("link", [False, True])
def test_masks_become_one_label_map(tmp_path, organs, link, capsys):
    out = tmp_path / "out"
    (tmp_path / "classes.tsv").write_text(PHANTOM_LABELS.to_tsv())
    arguments = [str(organs), "--out", str(out), "--classes", str(tmp_path / "classes.tsv")]
    assert script("convert_totalsegmentator").main(arguments + ["--link"] * link) == 0
    printed = capsys.readouterr().out
    assert "s0001: 2 voxels in more than one mask" in printed
    assert "s0001: 1 classes have no mask file" in printed
    assert "s0000:" not in printed
    dataset = read_dataset(out)
    assert dataset.ids == ("s0000", "s0001")
    assert dataset.channel_names == ("CT",)
    assert (out / "labels.tsv").read_text() == PHANTOM_LABELS.to_tsv()
    assert dataset.case("s0000").images[0].is_symlink() == link
    assert dataset.case("s0000").images[0].read_bytes() == (organs / "s0000" / "ct.nii.gz").read_bytes()
    for number, case in enumerate(dataset.cases):
        expected = read_labels(tmp_path / "phantoms" / "labelsTr" / f"phantom_00{number}.nii.gz").data
        expected = np.where((expected == 5) & (number == 1), 0, expected)
        np.testing.assert_array_equal(read_case_label(case, PHANTOM_LABELS).data, expected)


def test_classes_default_to_sorted_names(tmp_path, organs):
    assert script("convert_totalsegmentator").main([str(organs), "--out", str(tmp_path / "out")]) == 0
    labels = read_dataset(tmp_path / "out").labels
    assert labels is not None
    assert labels.names == ("background", "left_kidney", "liver", "right_kidney", "spine", "spleen")


def test_conversion_that_cannot_work(tmp_path, organs, capsys):
    convert = script("convert_totalsegmentator").main
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "few.tsv").write_text("value\tname\n1\tliver\n")
    assert convert([str(organs), *out, "--classes", str(tmp_path / "few.tsv")]) == 1
    assert "masks without a class: left_kidney, right_kidney, spine, spleen" in capsys.readouterr().err
    assert convert([str(tmp_path / "phantoms"), *out]) == 1
    assert "found no SUBJECT/ct.nii.gz" in capsys.readouterr().err
    write(
        Volume(np.zeros((1, 4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4))),
        organs / "s0000/segmentations/liver.nii.gz",
    )
    assert convert([str(organs), *out]) == 1
    assert "liver.nii.gz: mask on another grid than ct.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()
    write_phantoms(tmp_path / "full", 1, shape=(12, 10, 8))
    before = json.loads((tmp_path / "full" / "dataset.json").read_text())
    assert convert([str(organs), "--out", str(tmp_path / "full")]) == 1
    assert "found files in it" in capsys.readouterr().err
    assert json.loads((tmp_path / "full" / "dataset.json").read_text()) == before


# dicom_to_nifti -------------------------------------------------------------------------------------------


def test_no_series(tmp_path, capsys):
    convert = script("dicom_to_nifti").main
    (tmp_path / "empty").mkdir()
    assert convert([str(tmp_path / "empty"), str(tmp_path / "gone"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "no DICOM series" in error
    assert "2 of 2 series were not converted" in error
    assert convert([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path), "--name", "x"]) == 1
    assert "--name" in capsys.readouterr().err


@pytest.mark.skipif(not DICOM.is_dir(), reason="real data are not beside the checkout")
def test_real_series(tmp_path, capsys):
    convert = script("dicom_to_nifti").main
    folders = [str(DICOM / name) for name in ("gantry_tilt_ct", "uneven_gaps_ct")]
    assert convert([*folders, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "uneven gaps" in printed.err
    assert "gantry_tilt_ct.nii.gz: Volume(512x512x20" in printed.out
    written, source = read(tmp_path / "gantry_tilt_ct.nii.gz"), read(DICOM / "gantry_tilt_ct")
    np.testing.assert_array_equal(written.data, source.data)
    assert written.grid.distance(source.grid) < 1e-3
    assert written.grid.shear == pytest.approx(np.sin(np.radians(18.5)), abs=1e-3)
    assert convert([folders[0], "--out", str(tmp_path)]) == 1
    assert "found an existing" in capsys.readouterr().err
    assert convert([folders[0], "--out", str(tmp_path), "--name", "case 1"]) == 0
    assert (tmp_path / "case 1.nii.gz").is_file()
