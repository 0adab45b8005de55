"""Left and right labels that come in pairs are not mirrored into each other."""

from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.experiment.mirroring import resolve_mirroring
from medseg.labels.label_table import Labels

KIDNEYS = Labels.from_names({"left_kidney": 1, "right_kidney": 2, "spine": 3})
ORGANS = Labels.from_names({"liver": 1, "spleen": 2})


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("left_kidney", "right_kidney"), ("left_kidney", "right_kidney")),
        (("kidney_right", "kidney_left"), ("kidney_left", "kidney_right")),
        (("Left-Putamen", "Right-Putamen"), ("Left-Putamen", "Right-Putamen")),
        (("lungLeft", "lungRight"), ("lungLeft", "lungRight")),
        (("LEFT LUNG", "RIGHT LUNG"), ("LEFT LUNG", "RIGHT LUNG")),
    ],
)
def test_pairs_are_recognised_by_their_names(names, pair):
    assert Labels.from_names({name: i + 1 for i, name in enumerate(names)}).left_right_pairs() == (pair,)


@pytest.mark.parametrize("names", [("cleft", "cright"), ("left_atrium", "aorta"), ("lefty", "righty")])
def test_other_names_are_no_pair(names):
    assert Labels.from_names({name: i + 1 for i, name in enumerate(names)}).left_right_pairs() == ()


def parse(**values) -> Experiment:
    return Experiment.parse(values, source="test")


def flat(slice_axis: int) -> dict[str, object]:
    return {"model": {"name": "unet_2d"}, "patch": {"size": [32, 32], "slice_axis": slice_axis}}


@pytest.mark.parametrize(
    ("values", "axes"),
    [
        ({}, (1, 2)),
        ({"preprocess": {"orientation": "SAR"}}, (0, 1)),
        (flat(2), (1,)),
        (flat(0), (0, 1)),
        ({"preprocess": {"orientation": None}}, ()),
        ({"augment": {"mirror_axes": [1]}}, (1,)),
    ],
)
def test_left_and_right_are_not_mirrored_for_pairs(values, axes):
    assert resolve_mirroring(parse(**values), KIDNEYS).mirror_axes == axes


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("Anterior", "Posterior"), (0, 2)),
        (("vena_cava_superior", "vena_cava_inferior"), (0, 1)),
        (("lung_upper_lobe_left", "lung_upper_lobe_right", "lung_lower_lobe_left"), (1,)),
    ],
)
def test_other_opposites_are_mirrored_only_on_request(names, axes):
    labels = Labels.from_names({name: i + 1 for i, name in enumerate(names)})
    assert resolve_mirroring(parse(), labels).mirror_axes == axes
    assert resolve_mirroring(parse(augment={"mirror_axes": [1, 2]}), labels).mirror_axes == (1, 2)
    anyhow = resolve_mirroring(parse(preprocess={"orientation": None}), labels).mirror_axes
    assert anyhow == (() if labels.left_right_pairs() else (0, 1, 2))


@pytest.mark.parametrize(("values", "axes"), [({}, (0, 1, 2)), (flat(2), (0, 1))])
def test_all_axes_are_mirrored_for_labels_without_sides(values, axes):
    assert resolve_mirroring(parse(**values), ORGANS).mirror_axes == axes


@pytest.mark.parametrize("part", ["augment", "predict"])
def test_mirroring_left_and_right_is_refused_for_pairs(part):
    experiment = parse(**{part: {"mirror_axes": [0, 1]}})
    with pytest.raises(
        ConfigError, match=rf"{part}\.mirror_axes: found \[0, 1\].*left_kidney look like right"
    ):
        resolve_mirroring(experiment, KIDNEYS)
    assert resolve_mirroring(experiment, ORGANS)


def test_any_axis_may_run_from_left_to_right_if_files_keep_their_axes():
    experiment = parse(preprocess={"orientation": None}, predict={"mirror_axes": [2]})
    with pytest.raises(ConfigError, match=r"found \[2\] with axis 2 perhaps from left to right"):
        resolve_mirroring(experiment, KIDNEYS)
