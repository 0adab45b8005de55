"""Examples in README.md and the documentation: Python blocks run, commands and experiments are accepted."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from medseg.cli.main import build_parser
from medseg.config import apply_overrides
from medseg.data.datasets.phantom import write_phantoms
from medseg.experiment.config import ExperimentConfig
from medseg.experiment.experiment import Experiment
from medseg.inference.predictor import load
from medseg.io.files import read
from medseg.model_folder.settings import PredictSettings
from medseg.tuning.settings import TuneSettings
from tests.helpers.dicom_series import save_series
from tests.helpers.dicomweb_stub import dicomweb_stub
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
REPLACED = {
    "train.steps=2000": "train.steps=1",
    "runs/demo/model": "runs/first/model",
    "runs/phantom_ct_16_0/imagesTr/phantom_000.nii.gz": "ct.nii.gz",
}
"""What the examples name, and what the tests use instead because it is faster."""
DICOMWEB = "http://127.0.0.1:8042/dicom-web"  # answered by a server of the test
NEEDS_INSTANCES = "instances.md"  # its Python block needs a trained instance model
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return [text for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> list[str]:
    """Return the medseg commands in the shell blocks of a page, without comments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    plain = [re.split(r"\s+#", line)[0].strip() for line in lines]
    return [line for line in plain if line.startswith("medseg ")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with the names that the examples use: a dataset, images, and a trained run."""
    folder = tmp_path_factory.mktemp("workspace")
    dataset = write_phantoms(folder / "my_ct", cases=5, shape=(32, 28, 20), spacing=(4, 4, 6))
    case = dataset.cases[0]
    assert case.label is not None
    maps = ("reference", "ct_labels", "rater_1", "rater_2", "rater_3")
    for name, source in (("ct", case.images[0]), *((name, case.label) for name in maps)):
        shutil.copy(source, folder / f"{name}.nii.gz")
    save_series(folder / "ct_series", read(case.images[0]))
    (folder / "scans").mkdir()
    shutil.copy(case.images[0], folder / "scans")
    small = {
        "data": {"path": str(folder / "my_ct"), "folds": 2},
        "model": {"name": "unet_3d", "channels": [4, 8]},
        "patch": {"size": [16, 16, 16]},
        "train": {"steps": 1, "validation_batches": 1},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(small))
    list(Experiment.parse(small).trainer(folder / "runs" / "first"))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run(
    page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "\n".join(blocks(page, "python"))
    if not code or page.name == NEEDS_INSTANCES or page.name.startswith("add_a_"):
        pytest.skip("no Python that runs here")
    for old, new in REPLACED.items():
        code = code.replace(old, new)
    shutil.copytree(workspace, tmp_path / "work")
    if 'run="runs/first"' in code:
        shutil.rmtree(tmp_path / "work" / "runs" / "first")
    monkeypatch.chdir(tmp_path / "work")
    with dicomweb_stub() as stub:
        stub.add(tmp_path / "work" / "ct_series")
        code = code.replace(DICOMWEB, stub.address)
        exec(compile(code, str(page), "exec"), {"__name__": "__example__"})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_accepted(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for line in commands(page):
        words = [word for word in shlex.split(line)[1:] if word not in ("…", "...")]
        if not words or words in (["--version"], ["--help"]) or words[0].isupper():
            continue
        try:
            options, rest = parser.parse_known_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {line}\n{capsys.readouterr().err}")
        assert not [word for word in rest if word.startswith("-")], line
        if not page.name.startswith("add_a_"):  # they name parts that a reader adds
            check_values(options, [*_listed(options), *rest], line)


def _listed(options: argparse.Namespace) -> list[str]:
    return [*getattr(options, "overrides", []), *(getattr(options, "images", None) or [])]


def check_values(options: argparse.Namespace, words: list[str], line: str) -> None:
    """Check the key=value arguments of a command against the configuration that they change."""
    values = [word for word in words if re.match(r"[a-z_.0-9]+=", word)]
    if options.command == "train" and values:
        config = getattr(options, "config", None)
        known = [value for value in values if not value.startswith("model.")]
        source = ROOT / config if config and (ROOT / config).is_file() else None
        Experiment.load(source, *values) if source else ExperimentConfig.parse(
            apply_overrides({}, known), source=line
        )
    elif options.command == "predict" and values:
        PredictSettings.parse(apply_overrides({}, values), source=line)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "guides" in page.parts], ids=lambda page: page.name
)
def test_experiments_are_accepted(page: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if "search" in values:  # a file for `medseg tune`
            TuneSettings.parse(values, source=f"{page.name}: {text}").check({"data": {"path": "my_ct"}})
        elif "network" not in values:  # a file for `medseg import monai`
            ExperimentConfig.parse(values, source=f"{page.name}: {text}")


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            generated = ("commands", "configuration", "models", "api", "changelog", "contributing")
            if "://" in target or Path(target).stem in generated:
                continue
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_ci_runs_the_second_command_of_the_readme() -> None:
    setup = [block.strip() for block in blocks(PAGES[0], "bash") if ".venv" in block]
    assert len(setup) == 2
    assert setup[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 200


def test_measurements_have_a_section_for_each_benchmark() -> None:
    page = (DOCS / "measurements.md").read_text(encoding="utf-8")
    for name in ("hippocampus", "patch-store", "training", "inference", "nuclei", "augmentation"):
        assert f"<!-- begin {name} -->" in page
        assert f"<!-- end {name} -->" in page


def test_the_model_of_the_workspace_predicts(workspace: Path) -> None:
    assert load(workspace / "runs" / "first" / "model").labels.names[0] == "background"


def test_quoted_messages_exist() -> None:
    page = (DOCS / "guides" / "your_ct_by_friday.md").read_text(encoding="utf-8")
    table = page[page.index("| The message contains") :]
    quoted = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "medseg").rglob("*.py"))
    plural = {"files are missing"}  # composed of two parts
    assert len(quoted) > 5
    assert [text for text in quoted if text not in plural and text not in source] == []
