"""Figures of regions, with voxels to ignore, and of labels that nobody drew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metrics import compare_label_maps
from medseg.evaluation.label_maps.pairs import Pair
from medseg.evaluation.label_maps.table import Table
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

TUMOUR = Labels.from_names({"oedema": 1, "necrosis": 2, "enhancing": 3})
REGIONS = TUMOUR.with_regions({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})


def volume(data: np.ndarray) -> Volume:
    return Volume(data[None].astype(np.uint8), Grid.from_spacing(data.shape, (0.8, 1.5, 2.5)), "label")


def random_map(seed: int, top: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (9, 8, 7))


def test_a_region_is_measured_as_the_union_of_its_labels() -> None:
    prediction, reference = random_map(1), random_map(2)
    rows = compare_label_maps(volume(prediction), volume(reference), REGIONS, case="a")
    assert [(row.label, row.label_value) for row in rows] == [("whole", 1), ("core", 2), ("enhancing", 3)]
    for row, region in zip(rows, REGIONS.regions, strict=True):
        masks = [np.isin(data, region.values).astype(np.uint8) for data in (prediction, reference)]
        (alone,) = compare_label_maps(
            volume(masks[0]), volume(masks[1]), Labels.from_names({row.label: 1}), case="a"
        )
        assert replace(row, label_value=1) == alone
    assert Table(tuple(rows)).labels == ("whole", "core", "enhancing")


@pytest.mark.parametrize("labels", [TUMOUR, REGIONS])
def test_ignored_voxels_are_left_out(labels: Labels) -> None:
    prediction, reference = random_map(1), random_map(2)
    reference[:4] = 9
    cleared = [np.where(reference == 9, 0, data) for data in (prediction, reference)]
    found = compare_label_maps(volume(prediction), volume(reference), replace(labels, ignore=9))
    without = compare_label_maps(volume(cleared[0]), volume(cleared[1]), labels)
    # Voxels that are left out are no background either: only specificity counts these.
    assert [replace(row, specificity=0) for row in found] == [replace(row, specificity=0) for row in without]
    assert all(one.specificity < two.specificity for one, two in zip(found, without, strict=True))
    naive = compare_label_maps(volume(prediction), volume(cleared[1]), labels)
    assert naive[0].dice < 0.75 * found[0].dice


def test_ignore_value_in_a_prediction_raises() -> None:
    labels = replace(TUMOUR, ignore=9)
    with pytest.raises(DataError, match="a: prediction: unknown label value: found 9"):
        compare_label_maps(volume(np.full((2, 2, 2), 9)), volume(np.zeros((2, 2, 2))), labels, case="a")


def test_labels_without_annotation_get_no_metrics() -> None:
    both = volume(random_map(1)), volume(random_map(2, top=2))
    assert [row.label for row in compare_label_maps(*both, TUMOUR, annotated=("oedema",))] == ["oedema"]
    assert compare_label_maps(*both, REGIONS, annotated=("oedema",)) == []
    assert [row.label for row in compare_label_maps(*both, REGIONS, annotated=("enhancing", "necrosis"))] == [
        "core",
        "enhancing",
    ]
    with pytest.raises(
        DataError, match=r"a: reference: labels: unknown label 'edema'\. Did you mean 'oedema'"
    ):
        compare_label_maps(*both, TUMOUR, annotated=("edema",), case="a")


def test_pairs_list_the_annotated_labels() -> None:
    reference = volume(random_map(2, top=2))
    pairs = [Pair("a", reference, reference, ("oedema",)), Pair("b", reference, reference)]
    rows = [row for case in evaluate_cases(pairs, TUMOUR) for row in case]
    assert [(row.case, row.label) for row in rows] == [
        ("a", "oedema"),
        ("b", "oedema"),
        ("b", "necrosis"),
        ("b", "enhancing"),
    ]
    assert Table(tuple(rows)).statistics()["oedema"]["dice"].n == 2
