"""Evaluation of many cases, some of which cannot be evaluated, here and on a cluster."""

from __future__ import annotations

import os

import numpy as np
import pytest

import medseg
from medseg.cluster.dask_cluster import connected
from medseg.errors import DataError, ResourceError
from medseg.evaluation import Pair
from medseg.evaluation.measured_cases import InstanceEvaluator, LabelMapEvaluator, measured_cases
from medseg.labels.instances import Instances


@pytest.fixture
def pairs(tmp_path, make_volume):
    """Label maps and references on disk; the second prediction is damaged."""
    found = []
    for number in range(4):
        files = [tmp_path / f"{kind}_{number}.nii.gz" for kind in ("prediction", "reference")]
        for file, seed in zip(files, (number, 9), strict=True):
            medseg.write(make_volume(kind="label", seed=seed), file)
        found.append(Pair(f"case_{number}", *files))
    found[1].prediction.write_bytes(b"damaged")
    return found


def test_a_case_that_cannot_be_evaluated_does_not_stop_the_others(pairs):
    found = dict(measured_cases(pairs, LabelMapEvaluator(None)))
    assert list(found) == [0, 1, 2, 3]
    assert isinstance(found.pop(1), DataError)
    for index, rows in found.items():
        assert {row.case for row in rows} == {f"case_{index}"}
        expected = medseg.evaluate(pairs[index].prediction, pairs[index].reference)
        assert [row.dice for row in rows] == [row.dice for row in expected.rows]


def test_instances_are_measured_alike():
    lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    from medseg.evaluation import InstancePair

    ((index, (row,)),) = measured_cases([InstancePair("a", lesions, lesions)], InstanceEvaluator(None))
    assert (index, row.metrics.references) == (0, 2)


def test_a_lack_of_memory_is_the_error_of_its_case_only():
    def measure(pair):
        if pair.case == "large":
            raise MemoryError("Unable to allocate 9. TiB")
        return [pair.case]

    pairs = [Pair("large", None, None), Pair("", None, None)]
    found = dict(measured_cases(pairs, measure))
    assert isinstance(found[0], ResourceError)
    assert str(found[0]).startswith("large: found too little memory (Unable to allocate 9. TiB)")
    assert found[1] == [""]


def end_process(pair):
    """End the worker of one of the cases."""
    if pair.case == "fatal":
        os._exit(1)
    return [pair.case]


@pytest.mark.slow
def test_a_case_whose_worker_is_lost_is_named():
    pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")
    pairs = [Pair("fatal", None, None), Pair("usual", None, None)]
    found = dict(measured_cases(pairs, end_process, "local:1"))
    assert str(found[0]).startswith("fatal: the worker ended unexpectedly")
    assert found[1] == ["usual"]


@pytest.mark.slow
def test_a_cluster_returns_the_same_rows(pairs):
    pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")
    here = dict(measured_cases(pairs, LabelMapEvaluator(None)))
    there = dict(measured_cases(pairs, LabelMapEvaluator(None), "local:2"))
    assert sorted(there) == sorted(here)
    assert str(there.pop(1)) == str(here.pop(1))
    assert there == here


@pytest.mark.slow
def test_folders_are_evaluated_on_a_cluster_in_python(tmp_path, make_volume):
    pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")
    for folder, first in (("predictions", 0), ("references", 5)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            volume = make_volume(kind="label", seed=first + number)
            medseg.write(volume, tmp_path / folder / f"case_{number}.nii.gz")
    folders = (tmp_path / "predictions", tmp_path / "references")
    with connected("local:1"):
        assert medseg.evaluate(*folders, cluster="local:1").rows == medseg.evaluate(*folders).rows
        (tmp_path / "predictions/case_1.nii.gz").write_bytes(b"damaged")
        with pytest.raises(DataError, match="case_1"):
            medseg.evaluate(*folders, cluster="local:1")
