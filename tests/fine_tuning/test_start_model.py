"""A training that starts from a trained model: its record, its copy of the first weights, and its resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medseg.cli.main import main
from medseg.experiment.experiment import Experiment
from medseg.fine_tuning.start_model import published_record
from medseg.model_folder.settings import SavedModel
from medseg.models import LoadedWeights
from medseg.train.trainer import Trainer
from tests.helpers.runs import toy_experiment, write_toy_data

NEW_LABELS = "data.labels={background: 0, hepar: 1, spleen: 2, right_kidney: 3, left_kidney: 4, spine: 5}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine_tuning")
    write_toy_data(folder, cases=4)
    list(experiment(folder).trainer(folder / "first"))
    return folder


def experiment(folder: Path, *overrides: str) -> Experiment:
    return toy_experiment(folder, "train.steps=4", "train.save_every=2", *overrides, folds=2)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A training from the first model that was not stopped."""
    folder = tmp_path_factory.mktemp("tuned") / "whole"
    list(experiment(place, NEW_LABELS, f"model.weights={place / 'first'}").trainer(folder))
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
def test_what_was_taken_is_printed_stored_and_named_in_the_model_folder(place, tmp_path, capsys):
    config = tmp_path / "toy.yaml"
    config.write_text(experiment(place, NEW_LABELS).to_yaml())
    run = tmp_path / "run"
    command = ["train", str(config), "--run", str(run), f"model.weights={place / 'first'}", "train.steps=1"]
    assert main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("weights from"))
    assert lines[start].startswith("weights from model (toy, dataset phantom_ct, SHA-256 ")
    assert lines[start + 1 : start + 13] == [
        "part here source result note",
        "channel CT CT taken -",
        "output background background taken -",
        "output hepar - new fresh",
        "output spleen spleen taken -",
        "output right_kidney right_kidney taken -",
        "output left_kidney left_kidney taken -",
        "output spine spine taken -",
        "output - liver left -",
        "tensors encoder (6) encoder taken -",
        "tensors decoder (5) decoder taken -",
        "tensors head (2) head adapted to the outputs",
    ]
    record = json.loads((run / "started_from.json").read_text())
    saved = SavedModel.load(run / "model" / "config.yaml")
    assert saved.started_from is not None
    assert saved.started_from.to_plain() == record
    assert record["source"] == "model"
    assert "weights" not in saved.model
    assert str(place) not in (run / "model" / "config.yaml").read_text()
    assert (
        f"| started from {saved.started_from.in_words} | not stated |"
        in (run / "model" / "README.md").read_text()
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["weights"] == str(place / "first")


@pytest.mark.slow
def test_the_first_weights_are_those_of_the_source(place, tmp_path):
    trainer = experiment(place, f"model.weights={place / 'first' / 'model'}").trainer(tmp_path / "run")
    first = weights(place / "first")
    assert all(torch.equal(tensor, first[name]) for name, tensor in trainer.model.state_dict().items())
    assert all(
        torch.equal(tensor, first[name])
        for name, tensor in load_file(tmp_path / "run" / "first.safetensors").items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [0, 1, 2, 3])
def test_a_run_is_resumed_bit_by_bit_without_its_source(place, whole, tmp_path, monkeypatch, stopped_at):
    """Also if it was stopped before its first checkpoint."""
    source = shutil.copytree(place / "first", tmp_path / "source")
    tuned = experiment(place, NEW_LABELS, f"model.weights={source}")
    plain = Trainer._train_step

    def step(self, batches):
        if self.step == stopped_at:
            raise RuntimeError("stopped")
        return plain(self, batches)

    halves = tmp_path / "halves"
    monkeypatch.setattr(Trainer, "_train_step", step)
    with pytest.raises(RuntimeError, match="stopped"):
        list(tuned.trainer(halves))
    monkeypatch.setattr(Trainer, "_train_step", plain)
    shutil.rmtree(source)
    list(Experiment.from_run(halves).trainer(halves, resume=True))
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(halves).items())
    assert (halves / "model" / "config.yaml").read_text() == (whole / "model" / "config.yaml").read_text()


@pytest.mark.slow
def test_all_folds_start_from_the_source(place, tmp_path):
    tuned = experiment(place, NEW_LABELS, f"model.weights={place / 'first'}", "train.steps=1")
    list(tuned.cross_validation(tmp_path / "folds"))
    saved = SavedModel.load(tmp_path / "folds" / "model" / "config.yaml")
    assert saved.members == 2
    assert saved.started_from is not None
    assert saved.started_from.name == "toy"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.weights=nowhere"], "nowhere: no such file or folder, expected a model folder"),
        (["model.channels=[4, 16]"], "the weights do not fit UNet3d: "),
        (["model.adapt.labels={hepar: livr}", NEW_LABELS], "Did you mean 'liver'?"),
        (["model.adapt.inflat=mean"], "Did you mean 'inflate'?"),
    ],
)
def test_wrong_weights_are_refused_before_anything_is_written(place, tmp_path, capsys, overrides, message):
    config = tmp_path / "toy.yaml"
    config.write_text(
        yaml.safe_dump({**experiment(place).to_plain(), "model": {"channels": [4, 8], "num_blocks": 1}})
    )
    command = ["train", str(config), "--run", str(tmp_path / "run"), f"model.weights={place / 'first'}"]
    assert main([*command, *overrides]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_published_weights_have_a_record_by_part():
    loaded = LoadedWeights(
        "/home/somebody/net.pth", ("body.a", "body.b", "stem.a"), ("stem.a",), ("head.a",), ("fc.a",)
    )
    record = published_record(loaded, "net.pth")
    assert str(record).splitlines()[0] == "weights from net.pth"
    assert [(row.here, row.source, row.result) for row in record.rows] == [
        ("body (2)", "", "taken"),
        ("stem (1)", "", "adapted"),
        ("head (1)", "", "new"),
        ("", "fc (1)", "left"),
    ]
