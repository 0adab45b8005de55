"""A network teaches its labels to the one that started from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg.errors import ConfigError, DataWarning
from medseg.experiment.experiment import Experiment
from medseg.fine_tuning.old_labels import KeepOldLabels, OldLabels
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.weight_source import read_model_folder
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss
from medseg.train.trainer import Trainer
from tests.helpers.runs import toy_experiment, write_toy_data

pytestmark = pytest.mark.slow

# The source was trained on the same phantoms with other names, two of which are kept.
OLD_LABELS = "data.labels={background: 0, bone: 1, muscle: 2, fat: 3, skin: 4, air: 5}"
OWN = ("liver", "spleen", "right_kidney", "left_kidney", "spine")
LABELS = {"background": 0, **{name: number + 1 for number, name in enumerate(OWN)}, "bone": 6, "fat": 7}
NEW = (
    f"data.labels={LABELS}".replace("'", ""),
    f"data.partially_annotated={{'*': [{', '.join(OWN)}]}}",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old_labels")
    write_toy_data(folder, cases=4)
    list(experiment(folder, OLD_LABELS).trainer(folder / "first"))
    return folder


def experiment(folder: Path, *overrides: str) -> Experiment:
    fixed = ("train.steps=4", "train.save_every=2", "preprocess.normalize=zscore")
    return toy_experiment(folder, *fixed, *overrides, folds=2)


def kept(place: Path, *overrides: str, source: Path | None = None) -> Experiment:
    weights = f"model.weights={source or place / 'first'}"
    return experiment(place, weights, "train.keep_old_labels=true", *NEW, *overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_the_run_keeps_a_copy_of_the_teacher_and_is_resumed_without_its_source(place, tmp_path, monkeypatch):
    source = shutil.copytree(place / "first", tmp_path / "source")
    tuned, plain = kept(place, source=source), Trainer._train_step

    def step(self, batches):
        if self.step == 3:
            raise RuntimeError("stopped")
        return plain(self, batches)

    list(tuned.trainer(tmp_path / "whole"))
    monkeypatch.setattr(Trainer, "_train_step", step)
    with pytest.raises(RuntimeError, match="stopped"):
        list(tuned.trainer(tmp_path / "halves"))
    monkeypatch.setattr(Trainer, "_train_step", plain)
    shutil.rmtree(source)
    list(Experiment.from_run(tmp_path / "halves").trainer(tmp_path / "halves", resume=True))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    with pytest.warns(DataWarning, match="found bone, fat in no case"):  # as nothing teaches them
        list(kept(place, "train.keep_old_labels=false").trainer(tmp_path / "without"))
    assert not torch.equal(weights(tmp_path / "without")["head.weight"], expected["head.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.weights=null"], "found true without the weights of a trained model"),
        (["data.partially_annotated={}"], "found all labels annotated in all cases"),
        (["preprocess.spacing=[9, 9, 9]"], "preprocess: spacing: found (9.0, 9.0, 9.0), expected None as in"),
        (["preprocess.normalize=rescale"], "preprocess: normalisation of CT: found"),
        (["model.adapt.labels={bone: bon}"], "Did you mean 'bone'?"),
    ],
)
def test_settings_with_which_nothing_could_be_taught_are_refused(place, tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        kept(place, *overrides).trainer(tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_network_without_the_old_labels_is_refused(place, tmp_path):
    names = "data.labels={background: 0, a: 1, b: 2, c: 3, d: 4, e: 5}"
    tuned = experiment(place, f"model.weights={place / 'first'}", "train.keep_old_labels=true", names)
    with pytest.raises(
        ConfigError, match=r"found none of the labels of .*plan DATASET --from MODEL --keep-old-labels"
    ):
        tuned.trainer(tmp_path / "run")


def teacher(place: Path, inputs=("CT",), **adapt) -> OldLabels:
    source = read_model_folder(place / "first")
    names = Labels.from_names(LABELS)
    sets = LabelSets.from_annotations(names, {"case": OWN})
    ends = type(source.weights.ends)(tuple(inputs), names.names)
    return OldLabels.of(source, ends, AdaptSettings.parse(adapt), sets)


def test_the_teacher_sees_its_own_channels_by_name(place):
    image = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = teacher(place).probabilities(image[:, 1:])
    assert torch.equal(teacher(place, ("PET", "CT")).probabilities(image), alone)
    assert torch.equal(teacher(place, ("PET", "ct"), channels={"ct": "CT"}).probabilities(image), alone)
    assert torch.allclose(alone.sum(1), torch.ones(1, 8, 8, 8), atol=1e-5)
    with pytest.raises(ConfigError, match="found no channel CT"):
        teacher(place, ("PET",))


def test_coarser_heads_have_the_first_loss_only(place):
    old = teacher(place)
    sets = LabelSets.from_annotations(Labels.from_names(LABELS), {"case": OWN})
    criterion = build_loss(label_sets=sets)
    both = KeepOldLabels(criterion, old)
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    logits, label = torch.randn(1, 8, 8, 8, 8), torch.full((1, 1, 8, 8, 8), sets.background_value(OWN))
    assert both(logits, label) == criterion(logits, label)
    both.see(image)
    assert both(logits, label) > criterion(logits, label)
    small = logits[..., ::2, ::2, ::2], label[..., ::2, ::2, ::2]
    assert both(*small) == criterion(*small)
