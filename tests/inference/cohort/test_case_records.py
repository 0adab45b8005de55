"""What wrote a label map, and from what, is recorded in a file per case."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case
from medseg.errors import DataError
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_records import UNFINISHED, CaseRecords, CaseState
from medseg.inference.cohort.model_id import ModelId, model_hash
from medseg.inference.cohort.voxel_state import InputRecorder
from medseg.inference.cohort.written_files import FileKind
from medseg.inference.quality.case_quality import CaseQuality, Flag, FlagKind, LabelEstimate
from medseg.inference.uncertainty.case_evidence import CaseEvidence, OutputEvidence

ONE = ModelId("one")
LABELS = medseg.Labels.from_names({"background": 0, "liver": 2})


@pytest.fixture
def image(tmp_path, make_volume):
    """An image and its label map."""
    volume = make_volume(dtype="int16")
    medseg.write(volume, tmp_path / "image.nii.gz")
    return volume, make_volume(kind="label")


@pytest.fixture
def written(tmp_path, image):
    """Return a function that records a prediction and writes its label map."""
    volume, label_map = image

    def write(name="a", model_id=ONE, fails=None, source_names=True, known=None, **kinds):
        target = tmp_path / f"{name}.nii.gz"
        case = Case(name, (tmp_path / "image.nii.gz",))
        watch = InputRecorder(case)
        watch(volume)
        outcome = Outcome(
            case,
            target,
            input=watch.state,
            notes=(f"{case.images[0]}: in bfloat16",),
            reading=2.0,
            **(known or {}),
        )
        records = CaseRecords(tmp_path, source_names=source_names)
        with records.recording(outcome, label_map, model_id=model_id, labels=LABELS, **kinds):
            if fails is not None:
                raise fails
            medseg.write(label_map, target)
        return records, outcome

    return write


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def test_records_are_kept_and_compared(tmp_path, written):
    one, two = (model_folder(tmp_path / name, name) for name in ("one", "two"))
    model_id = ModelId.from_folders([one], {"overlap": 0.25})
    (tmp_path / "a_instances.nii.gz").touch()
    (tmp_path / "a_instances.tsv").touch()
    written("a", model_id, kinds=frozenset({FileKind.INSTANCES}))
    record = CaseRecords(tmp_path).get("a")
    assert CaseRecords(tmp_path).get("b") is None
    assert record.state is CaseState.PREDICTED
    assert record.is_by(model_id)
    assert record.is_by(model_id, frozenset({FileKind.INSTANCES}))
    assert not record.is_by(model_id, frozenset({FileKind.PROBABILITIES}))
    for other in (
        ModelId.from_folders([one]),
        ModelId.from_folders([two], {"overlap": 0.25}),
        ModelId.from_folders([one, two], {"overlap": 0.25}),
    ):
        assert not record.is_by(other)
    written("b", ModelId.from_folders([two, one]))
    second = CaseRecords(tmp_path).get("b")
    assert not second.is_by(ModelId.from_folders([two, one]), frozenset({FileKind.INSTANCES}))
    assert second.model == model_hash(two) != model_hash(one)
    assert second.id != record.id
    assert second.seconds >= 2.0
    assert second.peak_memory > 10**6


def test_evidence_is_kept_and_its_absence_is_noticed(written):
    evidence = CaseEvidence((OutputEvidence("liver", 2, 1.5, 1.25, 0.75, 0.5, 0.25, 0.125),))
    records, _ = written("a")
    assert records.get("a").is_by(ONE)
    assert not records.get("a").is_by(ONE, evidence=True)
    written("a", known={"evidence": evidence})
    assert not records.get("a").is_by(
        ONE, evidence=True
    )  # properties of the image and prediction are missing
    flag = Flag(FlagKind.VOLUME, "volume of liver", "3 ml", "1 to 2 ml")
    quality = CaseQuality((LabelEstimate("liver", dice=0.5, volume_low_ml=1.0),), (flag,), 0.9)
    written("a", known={"evidence": evidence, "features": {"noise": {"CT": 0.5}}, "quality": quality})
    found = records.get("a").prediction
    assert (found.evidence, found.features, found.quality) == (evidence, {"noise": {"CT": 0.5}}, quality)
    assert records.get("a").is_by(ONE, evidence=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "a"',
        "\xff",
        json.dumps({"format": 1, "name": "a"}),
        "3\n{}",
        '{"format": 1, "prediction": 3}',
    ],
)
def test_a_record_that_cannot_be_read_counts_as_absent(text, tmp_path, written):
    records, _ = written()
    (records.path / "a.json").write_text(text, encoding="latin-1")
    assert records.get("a") is None


def test_a_newer_format_is_refused(written):
    records, _ = written()
    path = records.path / "a.json"
    content = json.loads(path.read_text())
    assert content["format"] == 1
    path.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(DataError, match=r"format: found 2, expected 1, because a newer medseg"):
        records.get("a")


def test_settings_are_compared_whatever_their_order():
    one = ModelId.from_folders([], {"overlap": 0.25, "precision": "float32", "mirror_axes": [0]})
    other = ModelId.from_folders([], {"mirror_axes": (0,), "precision": "float32", "overlap": 0.25})
    assert one == other
    assert one.settings == ("mirror_axes=[0]", "overlap=0.25", "precision=float32")


def test_files_of_a_killed_program_are_unfinished(tmp_path, image, written):
    records, outcome = (
        CaseRecords(tmp_path),
        Outcome(Case("a", (tmp_path / "image.nii.gz",)), tmp_path / "a.nii.gz"),
    )
    recording = partial(records.recording, outcome, image[1], model_id=ModelId("one"), labels=LABELS)
    context = recording()
    context.__enter__()  # and then the program is killed
    record = records.get("a")
    assert record.is_unfinished
    assert not record.is_by(ModelId("one"))
    assert record.model == UNFINISHED
    written()
    assert records.get("a").is_by(ModelId("one"))
    with pytest.raises(OSError, match="disk"):
        written(model_id=ModelId("two"), fails=OSError("disk full"))
    assert records.get("a").is_by(ModelId("one"))  # what was there is still there


def test_a_failure_is_recorded_beside_what_was_predicted_earlier(tmp_path, written):
    records, outcome = written()
    failed = outcome.after("network", lambda: (_ for _ in ()).throw(DataError("broken")))[0]
    records.write_failure(failed)
    record = records.get("a")
    assert (record.state, record.message) == (CaseState.FAILED, "broken")
    assert record.is_by(ModelId("one"))
    records.forget_failure("a")
    assert records.get("a").state is CaseState.PREDICTED
    records.write_failure(Outcome(outcome.case, tmp_path / "c.nii.gz", error=DataError("broken")))
    records.forget_failure("c")  # there are no files that could be current
    assert records.get("c").state is CaseState.FAILED


def test_sources_are_left_out_of_records_on_request(tmp_path, written):
    records, outcome = written(source_names=False)
    error = DataError(f"{outcome.case.images[0]}: damaged. Copy image.nii.gz again into {tmp_path}.")
    records.write_failure(Outcome(outcome.case, tmp_path / "c.nii.gz", error=error))
    for name in ("a", "c"):
        text = (records.path / f"{name}.json").read_text()
        assert "image.nii.gz" not in text
        assert str(tmp_path) not in text
    assert records.get("c").message == "a: damaged. Copy a again into FOLDER."
    assert records.get("a").prediction.notes == ("a: in bfloat16",)
    records, _ = written(source_names=True)
    assert records.get("a").source == (str(tmp_path / "image.nii.gz"),)


def test_only_recorded_companion_files_are_deleted(tmp_path, written):
    beside = [tmp_path / name for name in ("a_instances.nii.gz", "a_instances.tsv", "a_probabilities.nii")]
    for file in beside:
        file.write_text("somebody's")
    written()
    assert all(file.is_file() for file in beside)
    written(kinds=frozenset({FileKind.INSTANCES, FileKind.PROBABILITIES}))
    with pytest.raises(OSError, match="disk"):
        written(fails=OSError("disk full"))
    assert all(file.is_file() for file in beside)
    written()
    assert not any(file.is_file() for file in beside)


def test_a_process_killed_while_it_deletes_outdated_files_leaves_an_unfinished_case(
    tmp_path, written, monkeypatch
):
    beside = tmp_path / "a_probabilities.nii"
    beside.touch()
    written(kinds=frozenset({FileKind.PROBABILITIES}))

    plain = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self == beside:
            raise SystemExit
        plain(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(SystemExit):
            written()
    record = CaseRecords(tmp_path).get("a")
    assert record.is_unfinished
    assert record.prediction.kinds == {FileKind.PROBABILITIES}
    written()
    assert not beside.exists()


def test_a_folder_without_a_model_has_no_hash(tmp_path):
    assert model_hash(tmp_path) == ""


def test_a_change_of_an_image_or_of_an_output_is_noticed(tmp_path, written):
    probabilities = tmp_path / "a_probabilities.nii"
    probabilities.write_text("probabilities")
    records, outcome = written(kinds=frozenset({FileKind.PROBABILITIES}))
    record = records.get("a")
    for path in (*outcome.case.images, outcome.target, probabilities):
        assert record.is_unchanged(outcome.case, outcome.target)
        content = path.read_bytes()
        path.write_bytes(content[:3])
        assert not record.is_unchanged(outcome.case, outcome.target)
        path.unlink()
        assert not record.is_unchanged(outcome.case, outcome.target)
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_the_same_voxels_in_another_file_are_unchanged_and_others_are_not(suffix, tmp_path, image, written):
    records, outcome = written()
    image_file, label_map = outcome.case.images[0], tmp_path / f"a{suffix}"
    volume = medseg.read(image_file)
    image_file.unlink()
    renamed = Case("a", (tmp_path / f"copy{suffix}",))
    medseg.write(volume, renamed.images[0])
    if label_map != outcome.target:
        medseg.write(medseg.read_labels(outcome.target), label_map)
    record = records.get("a")
    assert record.is_unchanged(renamed, label_map)
    affine = np.array(volume.grid.affine)
    affine[0, 3] += 0.25
    medseg.write(medseg.Volume(volume.data, medseg.Grid(volume.grid.shape, affine)), renamed.images[0])
    assert not record.is_unchanged(renamed, label_map)
