"""Plans of fine-tunings: what comes from the source, what from the dataset, and that the plan trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import medseg
from medseg.cli.main import main
from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import ConfigError, ModelError
from medseg.experiment.experiment import Experiment
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from medseg.planning.commented_yaml import plain_values
from medseg.planning.explained_experiment import DatasetSource, OtherModel, explained_experiment
from medseg.planning.memory_budget import choose_budget
from medseg.planning.nnunet.presets import find_preset
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_from_model import Start, adopted_proposal, fitted_to_time, with_start
from medseg.planning.plan_options import PlanOptions
from medseg.planning.propose import propose
from medseg.planning.training_length import TrainingLength

OPTIONS = {"channels": [4, 8], "num_blocks": 1, "norm": "group"}
FLOPS = 420_000.0  # per voxel: those of nnU-Net's network for the hippocampus
CT = {"method": "ct", "mean": 77.0, "std": 33.0, "low": -90.0, "high": 300.0}


def saved_model(folder, *, members=1, labels=("liver", "spleen", "pancreas"), **changes):
    names = Labels.from_names({"background": 0, **{name: n + 1 for n, name in enumerate(labels)}})
    flat = changes.get("slice_axis") is not None
    kind = f"unet_{2 if flat else 3}d"
    torch.manual_seed(0)
    models = [build_model(kind, in_channels=1, num_classes=len(names), **OPTIONS) for _ in range(members)]
    saved = SavedModel.parse(
        {
            "medseg": "0.1",
            "name": "organs",
            "model": {"name": kind, **OPTIONS},
            "channel_names": ["CT"],
            "preprocessing": {
                "orientation": "RAS",
                "spacing": [6, 6, 7],
                "crop_to_nonzero": False,
                "channels": [CT],
            },
            "window": [16, 16, 12],
            "trained_on": {"dataset": "abdomen", "batch_size": 3},
            **changes,
        }
    )
    save_model(folder, LogitEnsemble(models) if members > 1 else models[0], saved, names)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan_from") / "data"
    write_phantoms(folder, cases=3, shape=(26, 22, 14), spacing=(5, 5, 8))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("measured") / "fingerprint.json"


@pytest.mark.slow
def test_the_plan_takes_what_belongs_to_the_weights(dataset, cache, tmp_path):
    source = saved_model(tmp_path / "model")
    made = plan(dataset, PlanOptions(start=source, device="cuda"), cache=cache)
    experiment = made.experiment
    assert experiment == Experiment.parse(yaml.safe_load(made.text))
    assert experiment.model.weights == str(source)
    assert experiment.model.options().to_plain() == build_options()
    assert experiment.preprocess.spacing == (6, 6, 7)
    assert experiment.preprocess.crop_to_nonzero is False
    assert experiment.preprocess.normalize == ("ct",)
    assert experiment.preprocess.intensities is not None
    assert experiment.preprocess.intensities["CT"].to_plain() == {
        k: CT[k] for k in ("mean", "std", "low", "high")
    }
    assert experiment.patch.size == (16, 16, 12)
    train = experiment.train
    assert (train.steps, train.batch_size, train.freeze, train.keep_old_labels) == (25_000, 3, (), False)
    assert train.optimizer.lr == pytest.approx(0.003)
    assert (train.optimizer.warmup_steps, train.optimizer.layerwise_lr_decay) == (1000, 0.9)
    for line in (
        "Starts from the weights of organs (model).",
        "Labels that it knows: liver, spleen.",
        "New labels: right_kidney, left_kidney, spine.",
        "Labels of it that the dataset does not have: pancreas.",
    ):
        assert f"# {line}" in made.text
    assert experiment.data.labels is None
    short = plan(dataset, PlanOptions(start=source, steps=7, device="cpu"), cache=cache)
    assert short.experiment.train.steps == 7
    assert short.experiment.train.optimizer.lr == pytest.approx(0.002)
    assert short.experiment.train.optimizer.warmup_steps == 20


def build_options():
    return Experiment.parse({"model": {"name": "unet_3d", **OPTIONS}}).model.options().to_plain()


@pytest.mark.slow
def test_every_value_that_is_taken_has_a_reason(dataset, cache, tmp_path):
    source = saved_model(tmp_path / "model", members=2)
    text = plan(dataset, PlanOptions(start=source, keep_old_labels=True, device="cpu"), cache=cache).text
    lines = text.splitlines()
    for key in ("spacing:", "normalize:", "intensities:", "weights:", "member: 0", "size:", "optimizer:", "freeze:",
                "keep_old_labels: true", "labels:", "partially_annotated:"):  # fmt: skip
        number = next(n for n, line in enumerate(lines) if line.strip().startswith(key))
        assert "#" in lines[number] or lines[number - 1].strip().startswith("#"), key


@pytest.mark.slow
def test_old_labels_are_added_with_free_values_and_marked_as_not_annotated(dataset, cache, tmp_path):
    source = saved_model(tmp_path / "model", labels=("pancreas", "liver", "stomach"))
    experiment = plan(
        dataset, PlanOptions(start=source, keep_old_labels=True, device="cpu"), cache=cache
    ).experiment
    own = ["liver", "spleen", "right_kidney", "left_kidney", "spine"]
    values = {"background": 0, **{name: n + 1 for n, name in enumerate(own)}, "pancreas": 6, "stomach": 7}
    assert experiment.data.labels == values
    assert experiment.data.partially_annotated == {"*": tuple(own)}
    assert experiment.train.keep_old_labels


@pytest.mark.slow
def test_a_plan_from_a_2d_model_keeps_its_slices(dataset, cache, tmp_path):
    settings = {"slice_axis": 0, "window": [1, 16, 16], "slices": {"radiological_view": True}}
    source = saved_model(tmp_path / "flat", **settings)
    experiment = plan(dataset, PlanOptions(start=source, device="cpu"), cache=cache).experiment
    assert (experiment.model.name, experiment.patch.size, experiment.patch.slice_axis) == (
        "unet_2d",
        (16, 16),
        0,
    )
    assert experiment.slices.radiological_view


@pytest.mark.slow
def test_directions_of_files_are_not_assumed(dataset, cache, tmp_path):
    preprocessing = {"orientation": None, "spacing": None, "channels": [CT]}
    source = saved_model(tmp_path / "as_in_file", preprocessing=preprocessing)
    experiment = plan(dataset, PlanOptions(start=source, device="cpu"), cache=cache).experiment
    assert (experiment.preprocess.orientation, experiment.preprocess.spacing) == (None, None)
    assert (experiment.augment.mirror_axes, experiment.predict.mirror_axes) == (None, ())


def fine_tuning(f, source, time, labels=False):
    """The proposal and the values of a plan without a GPU."""
    start = Start.read(source, keep_old_labels=labels)
    length = TrainingLength(False, None, time)
    p = propose(f, find_preset("unet"), choose_budget(find_preset("unet"), "8GB", "cpu"), "3d", length)
    adopted = adopted_proposal(f, p, start)
    network = OtherModel(start.model, (2, 2, 2), FLOPS)
    fitted = fitted_to_time(adopted, start, network)
    tree = explained_experiment(f, fitted, DatasetSource(Path("data"), "auto"), network)
    dataset = Dataset("data", Path("data"), (), ("CT",), start.labels)
    return fitted, plain_values(with_start(tree, f, fitted, start, dataset, requested=True))


@pytest.mark.parametrize(
    ("stored", "sides", "covered"),
    [("RAS", 0, (16, 10, 12)), ("LPS", 0, (16, 10, 12)), ("PSR", 2, (10, 12, 16))],
)
def test_a_source_that_keeps_the_axes_of_files_sees_those_that_all_files_share(
    stored, sides, covered, make_fingerprint, make_case, tmp_path
):
    cases = [make_case(f"case_{n}", shape=(16, 10, 12), orientation=stored) for n in range(5)]
    f = make_fingerprint(cases=cases, channel_names=("CT",))
    preprocessing = {"orientation": None, "spacing": [1, 1, 1], "channels": [CT]}
    source = saved_model(tmp_path / "model", preprocessing=preprocessing)
    p, values = fine_tuning(f, source, "20m")
    assert values["preprocess"]["orientation"] == stored
    assert (values["augment"]["mirror_axes"], values["predict"]["mirror_axes"]) == ([sides], [sides])
    assert p.median_shape == covered
    others = [*cases[1:], make_case("other", orientation="LAS")]
    _, values = fine_tuning(make_fingerprint(cases=others, channel_names=("CT",)), source, "20m")
    assert values["preprocess"]["orientation"] is None
    assert values["predict"]["mirror_axes"] == []


def test_old_labels_are_kept_with_the_axes_of_the_source(make_fingerprint, tmp_path):
    preprocessing = {"orientation": None, "spacing": [1, 1, 1], "channels": [CT]}
    source = saved_model(tmp_path / "model", preprocessing=preprocessing)
    _, values = fine_tuning(make_fingerprint(channel_names=("CT",)), source, "20m", labels=True)
    assert values["preprocess"]["orientation"] is None


@pytest.mark.parametrize(
    ("time", "shape", "patch", "batch"),
    [
        ("20h", (20, 20, 20), (40, 56, 40), 2),  # steps are short enough
        ("5m", (35, 50, 36), (34, 50, 36), 2),  # only padding is cut off
        ("5m", (90, 90, 90), (40, 56, 40), 2),  # there is no padding
        ("5m", (5, 5, 5), (8, 8, 8), 9),  # the coarsest feature map keeps 4 voxels per axis
    ],
)
def test_steps_without_a_gpu_are_short_as_far_as_the_weights_allow(
    time, shape, patch, batch, make_fingerprint, tmp_path
):
    preprocessing = {"orientation": "RAS", "spacing": [1, 1, 1], "channels": [CT]}
    trained = {"trained_on": {"batch_size": 9}, "preprocessing": preprocessing}
    source = saved_model(tmp_path / "model", window=[40, 56, 40], **trained)
    p, values = fine_tuning(make_fingerprint(shape, channel_names=("CT",)), source, time)
    assert p.patch == patch
    assert values["patch"]["size"] == list(patch)
    assert values["train"]["batch_size"] == batch


@pytest.mark.slow
def test_the_command_writes_a_plan_that_trains_from_the_statistics_of_the_source(dataset, tmp_path, capsys):
    source, target = saved_model(tmp_path / "model"), tmp_path / "plan.yaml"
    command = ["plan", str(dataset), "--from", str(source), "-o", str(target), "--steps", "1"]
    assert main(command) == 0
    run = tmp_path / "run"
    assert (
        main(["train", str(target), "--run", str(run), "train.workers=0", "train.validation_batches=1"]) == 0
    )
    out = capsys.readouterr().out
    assert "weights from model (organs, dataset abdomen, SHA-256 " in out
    saved = SavedModel.load(run / "model" / "config.yaml")
    assert saved.preprocessing.channels[0].to_plain() == CT
    assert saved.started_from is not None
    assert medseg.load(run).labels.names[-1] == "spine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"start": "x", "dims": 2},
            r"dims: found it together with a model to start from.*Remove --dims or --from",
        ),
        ({"start": "x", "preset": "resenc-m"}, r"preset: found it together"),
        ({"start": "x", "model": "unet_3d"}, r"model: found it together"),
        ({"keep_old_labels": True}, r"keep_old_labels: found it without a model"),
    ],
)
def test_choices_that_the_source_has_made_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PlanOptions(**options)


@pytest.mark.slow
def test_sources_without_settings_or_with_two_stages_are_refused(dataset, cache, tmp_path):
    (tmp_path / "bare.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="found no settings of a model"):
        plan(dataset, PlanOptions(start=tmp_path / "bare.safetensors"), cache=cache)
    with pytest.raises(ModelError, match="no such file or folder"):
        plan(dataset, PlanOptions(start=tmp_path / "nowhere"), cache=cache)
