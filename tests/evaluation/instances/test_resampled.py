"""Intervals of instance metrics against pooling the cases of drawn subjects one by one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from medseg.evaluation.instances.metrics import match_instances, pool_counts
from medseg.evaluation.instances.resampled import instance_intervals
from medseg.evaluation.instances.table import METRICS, InstanceRow, InstanceTable
from medseg.evaluation.statistics.bootstrap import Interval, mean_of_known, resampled_weights
from medseg.labels.instances import Instances
from tests.evaluation.instances.test_metrics import of_class, random_pair

NAMES = {1: "nucleus", 2: "lesion"}
COUNTS = ("references", "predictions", "tp", "fn", "fp", "detected", "false_detections")


@pytest.fixture(scope="module")
def measured():
    """The counts of five cases of three subjects, by label name and case, and the subjects."""
    rng = np.random.default_rng(0)
    pairs = {f"case_{number}": random_pair(rng) for number in range(5)}
    counts = {
        name: {
            case: match_instances(of_class(found, value), of_class(expected, value))
            for case, (found, expected) in pairs.items()
        }
        for value, name in NAMES.items()
    }
    return counts, {f"case_{number}": f"subject_{number % 3}" for number in range(5)}


def pooled_draws(counts, subjects, names):
    """Return the metrics of every resample, by pooling each case as often as its subject is drawn."""
    found = []
    for times in np.concatenate(list(resampled_weights(len(names)))).astype(int):
        drawn = dict(zip(names, times, strict=True))
        parts = [one for case, one in counts.items() for _ in range(drawn[subjects[case]])]
        found.append(asdict(pool_counts(parts).metrics()))
    return {key: np.array([one[key] for one in found]) for key in METRICS if key not in COUNTS}


def test_each_draw_pools_the_cases_of_its_subjects(measured):
    counts, subjects = measured
    found = instance_intervals(counts, subjects)
    names = sorted(set(subjects.values()))
    draws = {label: pooled_draws(by_case, subjects, names) for label, by_case in counts.items()}
    assert set(found) == {"nucleus", "lesion", ""}
    for label, by_metric in draws.items():
        assert set(found[label]) == set(by_metric)
        for metric, values in by_metric.items():
            expected = Interval.from_draws(values, 3)
            assert asdict(found[label][metric]) == pytest.approx(asdict(expected), nan_ok=True), metric
    for metric in draws["lesion"]:
        both = mean_of_known(np.stack([one[metric] for one in draws.values()], axis=1))
        assert asdict(found[""][metric]) == pytest.approx(asdict(Interval.from_draws(both, 3)))


def table_of(counts, subjects):
    rows = [
        InstanceRow(case, value, name, counts[name][case], counts[name][case].metrics())
        for case in next(iter(counts.values()))
        for value, name in NAMES.items()
    ]
    return InstanceTable(tuple(rows), subjects=subjects)


def test_a_table_shows_and_stores_the_intervals(measured, tmp_path):
    counts, subjects = measured
    table = table_of(counts, subjects)
    assert str(table.intervals["lesion"]["f1"]) in repr(table)
    assert "5 cases of 3 subjects, which are few" in repr(table)
    table.write_summary(tmp_path / "summary.json")
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["labels"]["lesion"]["interval"]["ap50"] == asdict(table.intervals["lesion"]["ap50"])
    assert stored["mean_interval"]["pq"] == asdict(table.intervals[""]["pq"])
    for name, pooled in table.pooled().items():
        assert pooled.f1 in table.intervals[name]["f1"]
        assert pooled.ap in table.intervals[name]["ap"]


def test_a_subject_with_many_cases_counts_once(measured):
    counts, subjects = measured
    copied = {
        label: {f"{case}_{n}": one for case, one in by_case.items() for n in range(8)}
        for label, by_case in counts.items()
    }
    owners = {f"{case}_{n}": subject for case, subject in subjects.items() for n in range(8)}
    once, eightfold = instance_intervals(counts, subjects), instance_intervals(copied, owners)
    for label, by_metric in once.items():
        for metric, interval in by_metric.items():
            assert asdict(eightfold[label][metric]) == pytest.approx(asdict(interval), nan_ok=True)


def test_without_cases_or_with_one_subject_nothing_is_known(measured):
    counts, subjects = measured
    assert instance_intervals({}, {}) == {"": {}}
    alone = instance_intervals(counts, dict.fromkeys(subjects, "one"))
    assert math.isnan(alone["nucleus"]["f1"].low)
    nothing = match_instances(
        Instances.from_map(np.zeros((2, 2), int)), Instances.from_map(np.zeros((2, 2), int))
    )
    absent = instance_intervals({"absent": {"a": nothing, "b": nothing}}, {"a": "a", "b": "b"})
    assert math.isnan(absent["absent"]["ap"].low)
