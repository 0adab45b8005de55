"""The rule for the largest component, against a computation step by step and against nnU-Net's own function."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import medseg
from medseg.errors import DataError
from medseg.evaluation.cross_validation.select_post_processing import candidate_dice, select_post_processing
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"background": 0, "liver": 2, "spleen": 5, "tumour": 9})
NAMES = LABELS.names[1:]
SHAPE = (18, 16, 14)
TOUCHING = np.ones((3, 3, 3))


def some_case(seed: int, specks: dict[int, int], second: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A reference of three blocks side by side, and a prediction of them with stray voxels of some labels.

    `second` names a label whose reference has a second part, which the largest component lacks.
    """
    generator = np.random.default_rng(seed)
    reference = np.zeros(SHAPE, np.uint8)
    for value, start in ((2, 2), (5, 6), (9, 10)):
        reference[start : start + 4, 3:8, 3:8] = value
    if second is not None:
        reference[15:17, 11:14, 9:12] = second
    prediction = reference.copy()
    prediction[generator.random(SHAPE) < 0.03] = 0
    for value, count in specks.items():
        stray = generator.integers((0, 11, 0), (14, 16, 14), (count, 3))
        prediction[tuple(stray.T)] = value
    return prediction, reference


DATASETS = {
    "all help": [({2: 9, 5: 7, 9: 8}, None)] * 4,
    "one label has two parts": [({2: 9, 5: 7}, 9)] * 4,
    "only the liver has specks": [({2: 9}, 5)] * 3 + [({2: 3}, 9)],
    "nothing to remove": [({}, None)] * 3,
    "two parts everywhere": [({}, 2), ({}, 5), ({}, 9)],
    "one case against the others": [({2: 2, 5: 4}, None)] * 3 + [({5: 1}, 2)],
}


def cases_of(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [some_case(seed, *spec) for seed, spec in enumerate(DATASETS[name])]


def volume(data: np.ndarray) -> Volume:
    return Volume(data[None], Grid.from_spacing(SHAPE, (1.0, 1.25, 2.0)), "label")


def rule(name: str):
    cases = cases_of(name)
    return select_post_processing(
        np.stack([candidate_dice(volume(p), volume(r), LABELS) for p, r in cases]), NAMES
    )


def largest(data: np.ndarray, values) -> np.ndarray:
    mask = np.isin(data, values)
    parts, count = ndimage.label(mask, TOUCHING)
    sizes = [(parts == part).sum() for part in range(1, count + 1)]
    stays = [part for part, size in enumerate(sizes, 1) if size == max(sizes)]
    return np.where(mask & ~np.isin(parts, stays), 0, data)


def mean_dice(predictions, references) -> list[float]:
    """By label, over the cases where it is in one of the maps."""
    means = []
    for value in LABELS.values[1:]:
        found = []
        for prediction, reference in zip(predictions, references, strict=True):
            p, r = prediction == value, reference == value
            if p.any() or r.any():
                found.append(2 * (p & r).sum() / (p.sum() + r.sum()))
        means.append(float(np.mean(found)))
    return means


@pytest.mark.parametrize("name", DATASETS)
def test_rule_equals_trying_every_step_in_turn(name):
    cases = cases_of(name)
    references, kept = [r for _, r in cases], [p for p, _ in cases]
    before = now = mean_dice(kept, references)
    tried = [largest(p, LABELS.values[1:]) for p in kept]
    then = mean_dice(tried, references)
    union = np.mean(then) > np.mean(now) and all(a >= b for a, b in zip(then, now, strict=True))
    if union:
        kept, now = tried, then
    chosen = []
    for index, value in enumerate(LABELS.values[1:]):
        tried = [largest(p, [value]) for p in kept]
        then = mean_dice(tried, references)
        if then[index] > now[index]:
            kept, now = tried, then
            chosen.append(NAMES[index])
    found = rule(name)
    assert (found.keep_largest_foreground, found.keep_largest) == (union, tuple(chosen))
    assert list(found.before.values()) == pytest.approx(before, abs=1e-12)
    assert list(found.after.values()) == pytest.approx(now, abs=1e-12)
    assert found.helps == (union or bool(chosen))
    assert found.foreground_means == pytest.approx((np.mean(before), np.mean(now)))


def test_datasets_cover_the_branches_of_the_rule():
    outcomes = {(rule(name).keep_largest_foreground, rule(name).keep_largest) for name in DATASETS}
    assert len(outcomes) >= 4
    assert {union for union, _ in outcomes} == {True, False}


class _Serial:
    """A pool of processes that works in this one."""

    def Pool(self, processes):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def starmap(self, function, arguments):
        return list(itertools.starmap(function, arguments))


@pytest.mark.parametrize("name", DATASETS)
def test_rule_equals_nnunet(name, tmp_path, monkeypatch):
    evaluation = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    removal = pytest.importorskip("nnunetv2.postprocessing.remove_connected_components")
    for module in (evaluation, removal):
        monkeypatch.setattr(module.multiprocessing, "get_context", lambda method: _Serial())
    # nnU-Net wants consecutive values.
    consecutive = np.zeros(10, np.uint8)
    consecutive[list(LABELS.values)] = range(4)
    for number, (prediction, reference) in enumerate(cases_of(name)):
        for folder, data in (("predictions", prediction), ("references", reference)):
            (tmp_path / folder).mkdir(exist_ok=True)
            medseg.write(volume(consecutive[data]), tmp_path / folder / f"case_{number}.nii.gz")
    values = {label: index for index, label in enumerate(LABELS.names)}
    description = {"labels": values, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager"}
    folders = (str(tmp_path / "predictions"), str(tmp_path / "references"))
    _, arguments = removal.determine_postprocessing(*folders, plans, description, 1)
    theirs = [argument["labels_or_regions"] for argument in arguments]
    found = rule(name)
    ours = [[1, 2, 3]] if found.keep_largest_foreground else []
    assert theirs == [*ours, *(values[label] for label in found.keep_largest)]
    written = json.loads((tmp_path / "predictions" / "postprocessing.json").read_text())
    for side, key in ((found.before, "input_folder"), (found.after, "postprocessed")):
        for label, dice in side.items():
            assert written[key]["mean"][str(values[label])]["Dice"] == pytest.approx(dice, abs=1e-12)


def test_one_label_is_tried_once():
    liver = Labels.from_names({"background": 0, "liver": 2})
    cases = [tuple(np.where(array == 2, 2, 0) for array in some_case(seed, {2: 9})) for seed in range(3)]
    dice = np.stack([candidate_dice(volume(p), volume(r), liver) for p, r in cases])
    found = select_post_processing(dice, ["liver"])
    assert (found.keep_largest_foreground, found.keep_largest, len(found.trials)) == (True, (), 1)
    assert found.after["liver"] > found.before["liver"]


def test_absent_label_is_not_tried():
    cases = [tuple(np.where(array == 9, 0, array) for array in some_case(s, {2: 5})) for s in range(3)]
    dice = np.stack([candidate_dice(volume(p), volume(r), LABELS) for p, r in cases])
    found = select_post_processing(dice, NAMES)
    assert np.isnan(found.after["tumour"])
    assert found.keep_largest_foreground
    assert [trial.what for trial in found.trials] == [None, "liver", "spleen"]
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert plain["labels"]["tumour"] == {"before": None, "after": None}
    assert plain["foreground_mean_dice"]["before"] < plain["foreground_mean_dice"]["after"]


def test_tried_steps_are_reported():
    text = str(rule("only the liver has specks"))
    assert "largest component of all labels: Dice" in text
    assert "largest component of liver: Dice" in text
    assert ", kept" in text
    assert ", not kept" in text
    assert "no correction improves the Dice" in str(rule("nothing to remove"))


def test_maps_on_different_grids_raise():
    prediction, reference = (volume(array) for array in some_case(0, {}))
    with pytest.raises(DataError, match="a: prediction: not on the grid"):
        candidate_dice(prediction.cropped((0, 0, 0), (9, 9, 9)), reference, LABELS, where="a")
    turned = candidate_dice(prediction.reoriented("LPS"), reference, LABELS)
    assert np.array_equal(turned, candidate_dice(prediction, reference, LABELS))


def test_regions_are_corrected_separately_and_unknown_cases_left_out():
    labels = replace(Labels.from_names({"background": 0, "edema": 1, "core": 2}), ignore=9)
    labels = labels.with_regions({"whole": (1, 2), "core": (2,)}, {})
    reference = np.zeros(SHAPE, np.uint8)
    reference[1:5, 1:5, 1:5], reference[2:4, 2:4, 2:4] = 1, 2
    prediction = reference.copy()
    prediction[7, 1:3, 1:3] = 2  # a false part of both regions
    prediction[10:12, :2, :2] = 1  # nobody looked here
    reference[10:12, :2, :2] = 9
    dice = candidate_dice(volume(prediction), volume(reference), labels)
    assert dice[0] == pytest.approx([2 * 64 / (64 + 68), 2 * 8 / (8 + 12)])
    assert dice[1] == pytest.approx([1, 1])
    assert dice[2] == pytest.approx([1, 1])  # in each map only the region itself is corrected
    told = select_post_processing(dice[None], [one.name for one in labels.evaluated])
    assert (told.keep_largest_foreground, told.keep_largest) == (True, ())
    partial = candidate_dice(volume(prediction), volume(reference), labels, annotated=("core",))
    assert np.isnan(partial[:, 0]).all()
    assert np.isfinite(partial[:, 1]).all()
