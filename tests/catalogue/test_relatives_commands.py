"""Relatives of reported faults of commands: estimates, limits of file sizes, and what killed processes leave."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import DataWarning
from medseg.experiment.prepared_cases import store_in_use
from medseg.io.gzip_stream import GzipStream
from medseg.storage import temporary_names
from medseg.storage.temporary_names import temporary_file
from medseg.storage.tsv import read_tsv
from tests.catalogue.bench import Shared
from tests.helpers.nifti_files import save
from tests.helpers.runs import files_of_at_most

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with voxels of 1x1x2 mm."""
    return Shared(tmp_path_factory.mktemp("shared")).model


@pytest.mark.parametrize(
    ("shape", "spacing", "estimated"),
    [
        ((4, 12, 12), (24, 1, 2), "96x12x12 voxels"),
        ((12, 4, 12), (1, 24, 2), "12x96x12 voxels"),
        ((12, 12, 4), (1, 1, 24), "12x12x48 voxels"),
        ((12, 12, 1), (1, 1, 24), "12x12x12 voxels"),
        ((1, 12, 12), (12, 1, 2), "12x12x12 voxels"),
        ((12, 12, 12), (0.05, 0.05, 0.05), "1x1x1 voxels"),
    ],
)
@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_images_of_other_voxel_sizes_are_estimated(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    estimated: str,
) -> None:
    path = save(tmp_path / "a.nii", RNG.normal(size=shape), np.diag([*spacing, 1.0]))
    assert main(["predict", str(model), str(path), "--estimate", "--device", "cpu"]) == 0
    assert estimated in capsys.readouterr().out


@pytest.mark.parametrize("command", ["view", "plan", "check", "predict", "evaluate"])
def test_a_limit_of_file_sizes_ends_commands_as_a_full_disk_does(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    dataset = (
        Shared(model.parent).dataset if not (model.parent / "dataset").exists() else model.parent / "dataset"
    )
    image, labels = dataset / "imagesTr" / "c0_0000.nii.gz", dataset / "labelsTr"
    words = {
        "view": [image, "-o", tmp_path / "v.html"],
        "plan": [dataset, "-o", tmp_path / "p.yaml", "--workers", "1"],
        "check": [dataset, "--html", tmp_path / "c.html", "--workers", "1"],
        "predict": [model, image, "-o", tmp_path / "p", "--device", "cpu"],
        "evaluate": [labels, labels, "-o", tmp_path / "e"],
    }
    with files_of_at_most(100):
        assert main([command, *map(str, words[command])]) == 4
    assert "cannot be written (File too large). Raise the limit of file sizes" in capsys.readouterr().err
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and "lock" not in path.name and path.stat().st_size
    ]


def test_the_mark_of_a_killed_preparation_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(60)
    store = tmp_path / ".prepared"
    store.mkdir()
    mark = temporary_file(store / "in.use")
    mark.with_name(mark.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")).touch()
    monkeypatch.setattr(temporary_names, "_swept", set())
    with store_in_use(store):
        (mine,) = store.iterdir()
        assert f"-{os.getpid()}-" in mine.name
    assert not list(store.iterdir())


@pytest.mark.parametrize("place", range(18, 30))
def test_a_damaged_stream_is_refused_whatever_the_decoder_says(place: int) -> None:
    """The fast decoder and that of zlib, which describes the damage, do not notice the same faults first."""
    voxels = np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.int16)
    whole = gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes(), mtime=0)
    for bit in range(8):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        with pytest.raises((OSError, EOFError)):
            GzipStream(io.BytesIO(damaged)).read(1 << 20)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\x9bb", "-x", "--debug", "k=v", "a\u202eb"])
@pytest.mark.filterwarnings("ignore::medseg.errors.DataWarning")
def test_images_of_any_name_are_predicted_and_listed(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path(f"{name}.nii"), RNG.normal(size=(6, 6, 6)), np.diag([1.0, 1.0, 2.0, 1.0]))
    assert main(["predict", str(model), "-o", "out", "--device", "cpu", "--", f"{name}.nii"]) == 0
    printed = "".join(capsys.readouterr())
    assert not {"\x1b", "\x9b", "\u202e"} & set(printed)
    (row,) = read_tsv(Path("out/cases.tsv")).rows
    assert row.cells["state"] == "predicted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["view", "i.nii", "-o", "i.nii"],
            "--output: found i.nii, expected a file name that ends with .html",
        ),
        (["view", "i.nii", "-o", "model/README.md"], "expected a file name that ends with .html"),
        (
            ["check", "i.nii", "--html", "i.nii"],
            "--html: found i.nii, expected a file name that ends with .html",
        ),
        (
            ["check", "i.nii", "--json", "i.nii"],
            "--json: found i.nii, expected a file name that ends with .json",
        ),
        (["check", "data", "--json", "data/dataset.json"], "which is no report"),
        (
            ["check", "data", "--repair", "data/dataset.json", "--overwrite"],
            "--repair: found data/dataset.json",
        ),
        (["plan", "data", "-o", "data/dataset.json", "--overwrite"], "--output: found data/dataset.json"),
        (["predict", "model", "i.nii", "-o", "model"], "found a model folder"),
        (["predict", "model", "i.nii", "-o", "table"], "found cases.tsv, which belongs to no prediction"),
        (
            ["evaluate", "data/labelsTr", "data/labelsTr", "-o", "table"],
            "found a cases.tsv that is no evaluation",
        ),
    ],
)
def test_no_output_replaces_another_file(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = model.parent / "dataset"
    shutil.copytree(shared if shared.exists() else Shared(model.parent).dataset, "data")
    shutil.copytree(model, "model")
    Path("table").mkdir()
    Path("table/cases.tsv").write_text("case\timage\na\ta.nii\n")
    save(Path("i.nii"), RNG.normal(size=(6, 6, 6)), np.diag([1.0, 1.0, 2.0, 1.0]))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(words) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    image, report = save(tmp_path / "i.nii", RNG.normal(size=(6, 6, 6))), tmp_path / "r.json"
    for _ in range(2):
        assert main(["check", str(image), "--json", str(report)]) == 0
    assert "findings" in report.read_text()


@pytest.mark.parametrize(
    ("command", "number"), [("view", "0"), ("view", "-1"), ("view", "x"), ("inspect", "-1")]
)
def test_numbers_of_cases_are_plausible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, number: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path), f"--cases={number}"])
    assert ended.value.code == 1
    assert f"argument --cases: found '{number}', expected a whole number from" in capsys.readouterr().err


def test_the_same_folder_of_predictions_may_be_viewed_twice(model: Path, tmp_path: Path) -> None:
    data = model.parent / "dataset" if (model.parent / "dataset").exists() else Shared(model.parent).dataset
    labels = str(data / "labelsTr")
    assert main(["view", str(data), labels, labels, "--cases", "1", "-o", str(tmp_path / "v.html")]) == 0


@pytest.mark.parametrize(("shape", "shift"), [((6, 6, 5), 0.0), ((6, 6, 6), 3.0)])
def test_a_label_map_on_another_grid_is_named_by_the_viewer(
    tmp_path: Path, shape: tuple[int, ...], shift: float
) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    image = save(tmp_path / "i.nii", RNG.normal(size=(6, 6, 6)), affine)
    affine[0, 3] = shift
    labels = save(tmp_path / "l.nii", np.ones(shape, np.uint8), affine)
    with pytest.warns(DataWarning, match=r"l\.nii: found .*, expected the grid of .*i\.nii"):
        assert main(["view", str(image), str(labels), "-o", str(tmp_path / "v.html")]) == 0


def test_a_folder_of_several_images_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.nii", RNG.normal(size=(6, 6, 6)))
    assert main(["view", str(tmp_path), "-o", str(tmp_path / "v.html")]) == 1
    assert "found 2 images, expected one image, a DICOM series or a dataset" in capsys.readouterr().err
    (tmp_path / "b.nii").unlink()
    assert main(["view", str(tmp_path), "-o", str(tmp_path / "v.html")]) == 0
