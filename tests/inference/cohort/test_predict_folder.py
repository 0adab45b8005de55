"""Many images into one folder through the Python API."""

from __future__ import annotations

import dataclasses
import shutil

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case, ReadingOptions
from medseg.data.datasets.phantom import write_phantoms
from medseg.errors import ConfigError, DataError, ModelError
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.output_files import OutputFiles, PredictionState
from medseg.inference.cohort.voxel_state import InputRecorder
from medseg.model_folder.folder import save_model
from tests.helpers.dicom_series import Series


@pytest.fixture
def model(make_predictor, tmp_path):
    """A model folder of a small 3D U-Net."""
    predictor = make_predictor()
    save_model(tmp_path / "model", predictor.model, predictor.saved, predictor.labels)
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path):
    """A folder of two phantoms."""
    write_phantoms(tmp_path / "data", cases=2, shape=(14, 12, 10), spacing=(22, 24, 25))
    return tmp_path / "data" / "imagesTr"


def names(outcomes):
    return [outcome.target.name for outcome in outcomes]


def test_predict_writes_what_the_predictor_returns(model, images, tmp_path):
    seen = []
    outcomes = medseg.predict(
        model,
        images,
        tmp_path / "out",
        device="cpu",
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert names(outcomes) == ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert seen[-1][0] == seen[-1][1]
    for outcome in outcomes:
        expected = medseg.load(model, device="cpu")(outcome.case)
        assert np.array_equal(medseg.read_labels(outcome.target).data, expected.data)
        assert outcome.seconds == outcome.reading + outcome.network + outcome.writing > 0


def test_cases_and_datasets_are_named_after_their_ids(model, images, tmp_path):
    dataset = medseg.read_dataset(images.parent)
    (one,) = medseg.predict(model, [dataset.cases[1]], tmp_path / "one", suffix=".nrrd", device="cpu")
    assert one.target == tmp_path / "one" / "phantom_001.nrrd"
    assert names(medseg.predict(model, dataset, tmp_path / "all", device="cpu")) == [
        f"{case.id}.nii.gz" for case in dataset.cases
    ]


def test_existing_predictions_are_kept_updated_or_overwritten(model, images, tmp_path):
    def predicted(**options):
        return names(medseg.predict(model, images, tmp_path / "out", device="cpu", **options))

    both = ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    assert predicted() == both
    assert predicted() == both
    assert predicted(existing="keep") == []
    (tmp_path / "out" / both[0]).unlink()
    assert predicted(existing="keep") == both[:1]
    with pytest.raises(ConfigError, match="another model or other settings"):
        predicted(existing="keep", overlap=0.25)
    assert predicted(existing="update", overlap=0.25) == both
    assert predicted(existing="update", overlap=0.25) == []
    assert predicted(existing="keep", overlap=0.25, probabilities=True) == both  # no probabilities so far


def test_an_ensemble_writes_the_mean_probabilities(model, images, tmp_path):
    outcomes = medseg.predict([model, model], images, tmp_path / "out", probabilities=True, device="cpu")
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert (tmp_path / "out" / "phantom_000_probabilities.nii").is_file()
    expected = medseg.load(model, device="cpu")(outcomes[0].case)
    assert np.array_equal(medseg.read_labels(outcomes[0].target).data, expected.data)


def test_uncertainty_maps_are_written_kept_and_removed(model, images, tmp_path):
    def predicted(**options):
        return names(medseg.predict(model, images, tmp_path / "out", device="cpu", **options))

    both, maps = predicted(uncertainty=True), sorted((tmp_path / "out").glob("*_uncertainty.nii"))
    assert [path.name for path in maps] == ["phantom_000_uncertainty.nii", "phantom_001_uncertainty.nii"]
    assert predicted(uncertainty=True, existing="keep") == []
    maps[0].unlink()
    assert predicted(uncertainty=True, existing="keep") == both[:1]
    assert predicted() == both
    assert not list((tmp_path / "out").glob("*_uncertainty.nii"))


def test_a_damaged_image_does_not_stop_the_others(model, images, tmp_path):
    (images / "phantom_000.nii.gz").write_bytes(b"no image")
    bad, good = medseg.predict(model, images, tmp_path / "out", device="cpu")
    assert isinstance(bad.error, DataError)
    assert not bad.target.exists()
    assert good.error is None
    failed, estimated = medseg.estimate(model, images, device="cpu")
    assert isinstance(failed.error, DataError)
    assert estimated.seconds > 0
    assert estimated.parts[0].windows == 12
    assert not (tmp_path / "none").exists()


def test_unwritable_outputs_raise_before_any_work(model, images, tmp_path):
    with pytest.raises(ConfigError, match="would replace an input"):
        medseg.predict(model, images, images, device="cpu")
    twice = [images / "phantom_000.nii.gz", tmp_path / "phantom_000.nii"]
    medseg.write(medseg.read(twice[0]), twice[1])
    with pytest.raises(DataError, match="found two cases"):
        medseg.predict(model, twice, tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match="expected natural images"):
        medseg.predict(model, images, tmp_path / "out", suffix=".png", device="cpu")
    with pytest.raises(ModelError, match="finds no instances"):
        medseg.predict(model, images, tmp_path / "out", instances=True, device="cpu")
    with pytest.raises(ConfigError, match="instances: found several models"):
        medseg.predict([model, model], images, tmp_path / "out", instances=True, device="cpu")
    with pytest.raises(ConfigError, match=r"overlp: unknown key\. Did you mean 'overlap'"):
        medseg.predict(model, images, tmp_path / "out", device="cpu", overlp=0.25)
    assert not (tmp_path / "out").exists()


def test_a_prediction_is_current_only_with_all_of_its_files(tmp_path, make_volume):
    outputs, model_id = OutputFiles(tmp_path, instances=True), ModelId("one", ("overlap=0.25",))
    label_map, case = outputs.label_map_path("a"), Case("a", (tmp_path / "image.nii.gz",))
    image, labels = make_volume(), make_volume(kind="label")
    medseg.write(image, case.images[0])
    records, watch = CaseRecords(tmp_path), InputRecorder(case)
    watch(image)
    outcome = Outcome(case, label_map, input=watch.state)

    def state(model_id=model_id, outputs=outputs):
        return outputs.state(case, label_map, records, model_id)

    for file in outputs.files_of(label_map):
        assert state() is PredictionState.MISSING
        file.touch()
    assert state() is PredictionState.MISSING  # nothing says who wrote them
    table = medseg.Labels.from_names({"background": 0, "liver": 1})
    with records.recording(outcome, labels, model_id=model_id, labels=table, kinds=outputs.kinds):
        medseg.write(labels, label_map)
        assert state() is PredictionState.MISSING  # unfinished
    assert state() is PredictionState.CURRENT
    assert state(ModelId("one")) is PredictionState.OTHER_MODEL
    label_map.write_text("changed by another program")
    assert state() is PredictionState.MISSING
    with_probabilities = OutputFiles(tmp_path, probabilities=True)
    assert state(outputs=with_probabilities) is PredictionState.MISSING
    (tmp_path / "a_probabilities.nii").touch()  # of an earlier prediction
    assert state(outputs=with_probabilities) is PredictionState.MISSING


def test_a_changed_output_or_image_is_predicted_again(model, images, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    first = medseg.predict(model, folder, out, device="cpu")
    assert medseg.predict(model, folder, out, device="cpu", existing="keep") == []
    cut, replaced = first[0].target, first[-1].case.images[0]
    whole = medseg.read_labels(cut).data
    cut.write_bytes(cut.read_bytes()[:100])
    volume = medseg.read(replaced)
    medseg.write(dataclasses.replace(volume, data=volume.data[:, ::-1].copy()), replaced)
    again = medseg.predict(model, folder, out, device="cpu", existing="keep")
    assert [outcome.target for outcome in again] == [cut, first[-1].target]
    assert (medseg.read_labels(cut).data == whole).all()


def without_codes(path):
    """The NIfTI file with an sform and a qform that nothing says to use."""
    image = nib.load(path)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, path)


def test_the_description_of_the_geometry_can_be_chosen(model, images, tmp_path):
    file = images / "phantom_000.nii.gz"
    expected = medseg.load(model, device="cpu")(medseg.read(file))
    without_codes(file)
    (refused,) = medseg.predict(model, [file], tmp_path / "out", device="cpu")
    assert "qform_code and sform_code: found 0 and 0" in str(refused.error)
    options = {"device": "cpu", "orientation_from": "pixdim"}
    (outcome,) = medseg.predict(model, [file], tmp_path / "out", **options)
    assert outcome.error is None
    assert medseg.read_labels(outcome.target).spacing == pytest.approx(expected.spacing)
    assert medseg.estimate(model, [file], **options)[0].error is None
    assert medseg.estimate(model, [file], device="cpu")[0].error is not None
    case = Case("a", (file,))  # given cases keep what the argument leaves open
    assert medseg.predict(model, [case], tmp_path / "case", **options)[0].error is None
    decided = dataclasses.replace(case, reading=ReadingOptions("pixdim"))
    assert medseg.predict(model, [decided], tmp_path / "decided", device="cpu")[0].error is None


def test_a_table_lists_the_cases(model, images, tmp_path):
    table = images / "mine.csv"
    table.write_text("case,image\nsecond,phantom_001.nii.gz\nfirst,phantom_000.nii.gz\n")
    outcomes = medseg.predict(model, [table, images / "phantom_001.nii.gz"], tmp_path / "out", device="cpu")
    assert names(outcomes) == ["first.nii.gz", "second.nii.gz", "phantom_001.nii.gz"]
    assert [outcome.error for outcome in outcomes] == [None] * 3
    table.write_text("case,image\nfirst,/etc/passwd\n")
    with pytest.raises(DataError, match="is outside"):
        medseg.predict(model, table, tmp_path / "out", device="cpu")


def test_copies_of_label_maps_follow_the_label_map(model, images, tmp_path):
    copies, out = ["split_labels", "layers", "label_table"], tmp_path / "out"
    medseg.predict(model, images, out, device="cpu", copies=copies)
    label_map = medseg.read_labels(out / "phantom_000.nii.gz")
    predictor = medseg.load(model, device="cpu")
    for label in predictor.labels.foreground:
        mask = nib.load(out / "phantom_000_labels" / f"{label.name}.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), label_map.data[0] == label.value)
    assert np.array_equal(medseg.read_labels(out / "phantom_000_layers.seg.nrrd").data, label_map.data)
    assert medseg.Labels.from_tsv(out / "phantom_000_labels.tsv").names == predictor.labels.names

    assert medseg.predict(model, images, out, device="cpu", copies=copies, existing="keep") == []
    (out / "phantom_000_labels" / f"{predictor.labels.names[1]}.nii.gz").unlink()
    again = medseg.predict(model, images, out, device="cpu", copies=copies, existing="keep")
    assert names(again) == ["phantom_000.nii.gz"]

    medseg.predict(model, images, out, device="cpu")
    assert not list(out.glob("phantom_*_*"))
    with pytest.raises(
        ConfigError, match=r"copies: found split, expected any of label_table, layers, split_labels"
    ):
        medseg.predict(model, images, out, device="cpu", copies=["split"])


def test_another_choice_of_the_same_folder_is_predicted_again(model, tmp_path):
    series = Series(tmp_path / "ct", 12)
    for k, one in enumerate(series.slices):
        one.SeriesInstanceUID = "1.2.3.1" if k < 6 else "1.2.3.2"
        one.SeriesNumber = 1 if k < 6 else 2
    folder, out = series.save(), tmp_path / "out"
    with pytest.raises(DataError, match="found 2 series"):
        raise medseg.predict(model, folder, out, device="cpu")[0].error
    for number in (1, 2):
        (outcome,) = medseg.predict(model, folder, out, device="cpu", existing="update", series=number)
        assert outcome.error is None
        assert medseg.predict(model, folder, out, device="cpu", existing="update", series=number) == []
