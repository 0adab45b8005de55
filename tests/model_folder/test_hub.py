"""Model folders on a hub, whose client is replaced by a local folder; nothing else uses the network."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError

import medseg
from medseg.cli.main import main
from medseg.errors import ConfigError, ModelError
from medseg.model_folder.folder import save_model
from medseg.model_folder.hub import pull_model, push_model


@pytest.fixture
def folder(make_predictor, tmp_path):
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    return tmp_path / "model"


class Hub:
    """A hub in a folder, with the two functions of the client that medseg uses."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, {}

    def snapshot_download(self, repository, *, revision, allow_patterns, etag_timeout, local_dir=None):
        source = self.root / repository / (revision or "main")
        if not source.is_dir():
            raise HfHubHTTPError.__bases__[0]("no such repository")
        target = Path(local_dir or self.root / "cache" / repository)
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        if local_dir is not None:
            (target / ".cache").mkdir()
        return str(target)

    def create_repo(self, repository, *, private, exist_ok):
        assert exist_ok
        self.private.setdefault(repository, private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        target = self.root / repo_id / "main"
        for file in Path(folder_path).rglob("*"):
            name = file.relative_to(folder_path).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)
        return f"https://hub/{repo_id}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    stub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(
        create_repo=stub.create_repo, upload_folder=stub.upload_folder
    ))  # fmt: skip
    return stub


def test_a_pushed_model_is_pulled_and_loaded(folder, hub, tmp_path, capsys):
    (folder / ".notes").write_text("private")
    (folder / "figures").mkdir()
    (folder / "figures" / "patient.png").write_bytes(b"private")
    assert main(["push", str(folder), "clinic/liver"]) == 0
    assert "uploaded: https://hub/clinic/liver" in capsys.readouterr().out
    assert hub.private == {"clinic/liver": True}
    pushed = {path.name for path in (hub.root / "clinic/liver/main").rglob("*")}
    assert pushed == {"config.yaml", "labels.tsv", "model.safetensors", "README.md", "manifest.json"}

    assert main(["pull", "clinic/liver", "-o", str(tmp_path / "pulled")]) == 0
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == pushed
    assert (tmp_path / "pulled/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    predictor = medseg.load("hf://clinic/liver", device="cpu")
    assert predictor.saved == medseg.load(folder, device="cpu").saved


def test_a_new_repository_is_public_only_on_request(folder, hub):
    push_model(folder, "clinic/liver", public=True)
    assert hub.private == {"clinic/liver": False}


def test_code_is_not_downloaded_and_foreign_files_are_refused(folder, hub, tmp_path):
    push_model(folder, "clinic/liver")
    stored = hub.root / "clinic/liver/main"
    (stored / "model.py").write_text("raise SystemExit('executed')")
    (stored / "weights.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    pulled = pull_model("clinic/liver", tmp_path / "one")
    assert not list(pulled.glob("*.p*"))
    (stored / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"unexpected files: tokenizer\.json"):
        pull_model("clinic/liver", tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_changed_weights_are_refused(folder, hub, tmp_path):
    push_model(folder, "clinic/liver")
    weights = hub.root / "clinic/liver/main/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"model\.safetensors: found SHA-256"):
        medseg.load("hf://clinic/liver")


def test_a_damaged_folder_is_not_uploaded(folder, hub):
    (folder / "labels.tsv").write_text("value\tname\n1\tliver\n")
    with pytest.raises(ModelError, match=r"labels\.tsv: found"):
        push_model(folder, "clinic/liver")
    assert not hub.root.exists()


def test_names_and_answers_that_cannot_be_used(folder, hub, tmp_path):
    for name in ("liver", "a/b/c", "clinic/liver/../x", "https://hub/a"):
        with pytest.raises(ConfigError, match="expected OWNER/NAME"):
            pull_model(name, tmp_path / "new")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        push_model(folder, "clinic/liver@v1")
    with pytest.raises(ConfigError, match="exists already"):
        pull_model("clinic/liver", folder)
    with pytest.raises(ModelError, match=r"clinic/liver@v1: cannot be downloaded \(no such repository\)"):
        pull_model("clinic/liver@v1", tmp_path / "new")
    assert not (tmp_path / "new").exists()


WITHOUT_NETWORK = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        print("used the network:", event, arguments[:1], flush=True)
        raise SystemExit(3)
sys.addaudithook(hook)
import numpy as np
import medseg
from medseg.cli.main import main
predictor = medseg.load(sys.argv[1], device="cpu")
image = medseg.Volume(np.zeros((1, 8, 8, 8), np.float32), medseg.Grid.from_spacing((8, 8, 8)))
predictor(image)
assert main(["card", sys.argv[1]]) == 0
if len(sys.argv) > 2:
    medseg.load(sys.argv[2])
"""


@pytest.mark.slow
def test_the_network_is_used_only_for_a_name_of_the_hub(folder):
    """Sockets are watched in a new process; loading, predicting and printing the card open none."""

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_NETWORK, str(folder), *words],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("hf://clinic/liver")
    assert done.returncode != 0
    # The guard of the tests may be asked first.
    assert "used the network" in done.stdout or "must not resolve 'huggingface.co'" in done.stderr
