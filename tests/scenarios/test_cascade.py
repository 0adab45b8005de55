"""Both stages of a cascade on phantoms: label maps of the folds, a second stage trained on them, and one model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file

import medseg
from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.datasets.splits import k_fold, write_splits
from medseg.errors import ConfigError, DataError, ModelError
from medseg.experiment.experiment import Experiment
from medseg.experiment.held_out import held_out_cases
from medseg.experiment.resolve_data import find_dataset
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.batch import predict_files
from medseg.model_folder.folder import load_model, save_model
from medseg.models.volumetric.logit_ensemble import LogitEnsemble
from medseg.runtime.stop_signals import Interrupted
from tests.helpers.patches import patch_dataset

pytestmark = pytest.mark.slow

TOY = [
    "model.channels=[4,8]",
    "model.num_blocks=1",
    "patch.size=[16,16,16]",
    "train.batch_size=2",
    "train.validation_batches=1",
    "train.precision=float32",
    "predict.precision=float32",
    "predict.overlap=0",
    "data.folds=2",
]
LOW = "preprocess.spacing=[30,30,36]"
FULL = "preprocess.spacing=[16,17,20]"


def experiment_of(data: Path, *changes: str) -> Experiment:
    values: dict[str, object] = {"data": {"path": str(data)}}
    path = data.parent / "experiment.yaml"
    path.write_text(json.dumps(values))
    return Experiment.load(path, *TOY, *changes)


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """The data and a first stage trained on two folds, with ``predictions``, ``splits.json`` and ``model``."""
    folder = tmp_path_factory.mktemp("cascade")
    dataset = write_phantoms(folder / "data", cases=6, shape=(22, 20, 16), spacing=(14, 15, 18))
    run, members = folder / "low", []
    for fold in (0, 1):
        fold_run = run / f"fold_{fold}"
        experiment = experiment_of(folder / "data", LOW, "train.steps=3", f"data.fold={fold}")
        for _ in experiment.trainer(fold_run):
            pass
        predictor = medseg.load(fold_run / "model", device="cpu")
        pairs = [
            (case, run / "predictions" / f"{case.id}.nii.gz") for case in held_out_cases(RunFolder(fold_run))
        ]
        assert not [outcome.error for outcome in predict_files(predictor, pairs) if outcome.error]
        members.append(predictor)
    write_splits(k_fold(dataset.labelled_cases, 2, 0), run / "splits.json")
    save_model(run / "model", LogitEnsemble([m.model for m in members]), members[0].saved, members[0].labels)
    return folder


@pytest.fixture(scope="session")
def cascade(stage):
    """A second stage trained on the predictions of the first stage."""
    experiment = experiment_of(stage / "data", FULL, "train.steps=4", f"cascade.first_stage={stage / 'low'}")
    reports = list(experiment.trainer(stage / "full"))
    assert np.isfinite(reports[-1].loss)
    return stage / "full"


def test_the_run_and_its_model_hold_the_first_stage(stage, cascade):
    model, saved, labels = load_model(cascade / "model")
    assert saved.num_first_stage_labels == 5 == len(labels.foreground)
    assert model.in_channels == 6
    for name in ("member_0.safetensors", "member_1.safetensors", "manifest.json"):
        for folder in (
            cascade / "first_stage",
            cascade / "model" / "first_stage",
            cascade / "best" / "first_stage",
        ):
            assert (folder / name).read_bytes() == (stage / "low" / "model" / name).read_bytes()
    assert Experiment.load(cascade / "config.yaml").cascade.first_stage == str(stage / "low")


def test_prepared_maps_are_small_integers_on_the_grid_of_the_image(stage, cascade):
    folders = [f for f in (stage / ".prepared").iterdir() if (f / "first_stage.npy").is_file()]
    assert len(folders) == 6
    for folder in folders:
        previous, image = np.load(folder / "first_stage.npy"), np.load(folder / "image.npy")
        assert previous.dtype == np.uint8
        assert previous.shape == image.shape
        case = folder.name.rsplit("-", 1)[0]
        found = medseg.read_labels(stage / "low" / "predictions" / f"{case}.nii.gz")
        share = np.bincount(previous.ravel(), minlength=6)[1:] / previous.size
        expected = np.bincount(found.data.ravel(), minlength=6)[1:] / found.data.size
        np.testing.assert_allclose(share, expected, atol=0.05)


def test_one_folder_predicts_and_held_out_cases_see_their_own_fold(stage, cascade, capsys):
    """Both stages predict an image; held-out cases use the label map of the fold that was not trained on them."""
    case = held_out_cases(RunFolder(cascade))[0]
    assert case.first_stage == stage / "low" / "predictions" / f"{case.id}.nii.gz"
    out = stage / "out"
    assert main(["predict", str(cascade / "model"), str(case.images[0]), "-o", str(out)]) == 0
    assert main(["predict", str(cascade), "--held-out"]) == 0
    assert main(["evaluate", str(cascade)]) == 0
    assert ", after experiment" in capsys.readouterr().out
    predictor = medseg.load(cascade)
    plain = medseg.data.datasets.cases.Case(case.id, case.images)
    written = np.asarray(nib.load(next(out.glob("*.nii.gz"))).dataobj)
    assert np.array_equal(written, predictor(plain).data[0])
    held_out = np.asarray(nib.load(cascade / "predictions" / f"{case.id}.nii.gz").dataobj)
    assert np.array_equal(held_out, predictor(case).data[0])
    first = predictor.first_stage
    assert not np.array_equal(first(plain).data, medseg.read_labels(case.first_stage).data)


def test_the_estimate_and_an_ensemble_of_cascades(stage, cascade, capsys):
    image = held_out_cases(RunFolder(cascade))[0].images[0]
    model = str(cascade / "model")
    assert main(["predict", model, str(image), "-o", str(stage / "e"), "--estimate"]) == 0
    assert "1 of 1 case: " in capsys.readouterr().out
    both = [model, str(image), "-o", str(stage / "both"), "--ensemble-with", str(cascade / "best")]
    assert main(["predict", *both, "--max-memory", "20GB"]) == 0
    assert len(list((stage / "both").glob("*.nii.gz"))) == 1


def test_stopped_and_resumed_equals_uninterrupted(stage, cascade):
    trainer = Experiment.load(cascade / "config.yaml", "train.report_every=1").trainer(stage / "stopped")
    steps = iter(trainer)
    next(steps), next(steps)
    import signal

    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        list(steps)
    assert not (stage / "stopped" / "model").exists()
    resumed = Experiment.load(stage / "stopped" / "config.yaml").trainer(stage / "stopped", resume=True)
    list(resumed)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (cascade, stage / "stopped"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    shutil.rmtree(stage / "stopped" / "first_stage")
    with pytest.raises(ModelError, match=r"first_stage.manifest\.json: no such file"):
        Experiment.load(stage / "stopped" / "config.yaml").trainer(stage / "stopped", resume=True)


def changed_stage(stage: Path, target: Path) -> Path:
    """A copy of the first stage that tests may damage."""
    for part in ("predictions", "model"):
        shutil.copytree(stage / "low" / part, target / part)
    shutil.copy(stage / "low" / "splits.json", target)
    return target


def refused(stage: Path, previous: Path, run: Path, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        experiment_of(stage / "data", FULL, f"cascade.first_stage={previous}").trainer(run)
    assert not run.exists()


def test_missing_label_maps_of_the_first_stage_are_reported(stage, tmp_path):
    low = changed_stage(stage, tmp_path / "low")
    (low / "predictions" / "phantom_002.nii.gz").unlink()
    message = rf"1 of 6 label maps of the first stage are missing: phantom_002\. Predict them with: medseg predict {low} --held-out"
    refused(stage, low, tmp_path / "run", DataError, message)


def test_a_single_run_is_refused_as_first_stage(stage, tmp_path):
    """Label maps of its training cases, which are too accurate, do not change that."""
    single = stage / "low" / "fold_0"
    low = changed_stage(stage, tmp_path / "low")
    shutil.copy(single / "splits.json", low / "splits.json")
    message = (
        r"3 of 6 cases were not held out by any fold: phantom_.*Cross-validate the first stage .*--all-folds"
    )
    refused(stage, low, tmp_path / "run", ConfigError, message)
    refused(stage, single, tmp_path / "run", ConfigError, message)


def test_an_unfinished_or_foreign_stage_is_refused(stage, tmp_path):
    low = changed_stage(stage, tmp_path / "low")
    refused(stage, tmp_path / "nothing", tmp_path / "run", ConfigError, "found no finished run .*--all-folds")
    (low / "model" / "labels.tsv").write_text("value\tname\n0\tbackground\n1\tx\n")
    refused(stage, low, tmp_path / "run", ModelError, r"labels\.tsv: found .* bytes, expected")
    shutil.rmtree(low / "model")
    refused(stage, low, tmp_path / "run", ConfigError, "found no finished run")
    predictor = medseg.load(stage / "low" / "model", device="cpu")
    saved = predictor.saved.replace(channel_names=["T2"])
    save_model(low / "model", predictor.model, saved, predictor.labels)
    refused(stage, low, tmp_path / "run", ConfigError, "channels: found T2, expected CT")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"cascade": {"first_stage": "x"}, "model": {"name": "unet_2d"}, "patch": {"size": [8, 8]}},
            "cascade: found a first stage, expected none because model.name is unet_2d",
        ),
        (
            {"augment": {"dummy_2d_axis": 2}, "model": {"name": "unet_2d"}, "patch": {"size": [8, 8]}},
            "augment.dummy_2d_axis: found 2, expected null because the patches of unet_2d are already slices",
        ),
        ({"cascade": {"first_stag": "x"}}, "Did you mean 'first_stage'"),
        ({"cascade": {"first_stage": ""}}, "cascade.first_stage"),
    ],
)
def test_mistakes_raise_clear_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.parse(values)


def test_onnx_export_of_a_cascade_raises_a_clear_error(cascade, tmp_path, capsys):
    assert main(["export", "onnx", str(cascade / "model"), "-o", str(tmp_path / "a.onnx")]) == 1
    assert "the second stage of a cascade cannot be exported as ONNX" in capsys.readouterr().err


def test_only_a_changed_label_map_is_prepared_again(stage, cascade, tmp_path):
    low = changed_stage(stage, tmp_path / "low")
    experiment = experiment_of(stage / "data", FULL, "train.steps=1", f"cascade.first_stage={low}")
    before = len(list((stage / ".prepared").glob("*-*")))
    experiment.trainer(stage / "other")
    assert len(list((stage / ".prepared").glob("*-*"))) == before
    changed = next((low / "predictions").glob("*.nii.gz"))
    volume = medseg.read_labels(changed)
    medseg.write(volume.with_data(np.ascontiguousarray(volume.data[:, ::-1])), changed)
    experiment.trainer(stage / "again")
    assert len(list((stage / ".prepared").glob("*-*"))) == before + 1


def test_patches_hold_image_and_label_map_with_the_same_augmentation(stage, cascade):
    """With the reference as first-stage map, the channels are the indicators of the label in every augmented patch."""
    from dataclasses import replace

    from medseg.data.patches.first_stage_channels import FirstStageChannels
    from medseg.data.patches.prepare_cases import fill_store
    from medseg.data.preprocessing.normalize import Normalization
    from medseg.data.preprocessing.prepare import Preprocessing
    from medseg.data.settings import Augmentation, FirstStageAugmentation

    dataset = find_dataset(experiment_of(stage / "data"), stage)
    cases = [replace(case, first_stage=case.label) for case in dataset.cases]
    settings = Preprocessing(spacing=(16, 17, 20), channels=(Normalization(),))
    stored = list(fill_store(stage / "store", cases, dataset.labels, settings, first_stage=dataset.labels))
    options = {"size": (16, 12, 8), "length": 40, "seed": 1}
    turned = Augmentation(rotate_p=0.7, scale_p=0.7)
    seen = patch_dataset(stored, **options, augmentation=turned, first_stage=FirstStageChannels(5))
    without = patch_dataset(stored, **options, augmentation=turned)
    spoiled = patch_dataset(
        stored, **options, augmentation=turned, first_stage=FirstStageChannels(5, FirstStageAugmentation())
    )
    changed = 0
    for index in range(40):
        sample, plain = seen[index], without[index]
        assert sample["image"].shape == (6, 16, 12, 8)
        assert np.array_equal(sample["image"][:1], plain["image"])  # all other random numbers are the same
        assert np.array_equal(sample["label"], plain["label"])
        for label in range(1, 6):
            assert np.array_equal(sample["image"][label], (sample["label"][0] == label).float())
        again = spoiled[index]
        assert np.array_equal(again["label"], plain["label"])
        assert np.array_equal(again["image"], spoiled[index]["image"])
        assert again["image"][1:].sum(0).max() <= 1
        changed += not np.array_equal(again["image"], sample["image"])
    assert 5 < changed < 30
