"""Cases that are worked on in this process, in several processes, or on a Dask cluster."""

from __future__ import annotations

import os

import pytest

from medseg.cluster.case_map import CaseExecutor
from medseg.cluster.dask_cluster import connected
from medseg.errors import DataError, DataWarning, DiskFullError, MedsegError, ResourceError, warn_once

pytestmark = pytest.mark.slow
NAMES = ["a", "b", "c", "d"]


def half(number: int) -> int:
    """Halve an even number; fail, warn or end the process for others."""
    if number == 1:
        raise DataError("one.nii.gz: found an odd number, expected an even one.")
    if number == 4:
        warn_once("four.nii.gz: found a four.")
    if number == 13:
        os._exit(1)
    if number == 17:
        raise MemoryError("Unable to allocate 9. TiB")
    if number == 99:
        raise DiskFullError("store: the disk is full.")
    return number // 2


def test_a_cluster_does_what_one_process_does():
    pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")
    seen = []
    with connected("local:2") as client:
        with connected("local:2") as again:
            assert again is client
        with pytest.warns(DataWarning, match="found a four"):
            found = CaseExecutor(cluster="local:2").map(
                half, [2, 1, 4, 6], NAMES, [], progress=lambda *news: seen.append(news)
            )
        assert [found[0], *found[2:]] == [1, 2, 3]
        assert isinstance(found[1], DataError)
        assert "one.nii.gz" in str(found[1])
        assert [news[:2] for news in seen] == [(n, 4) for n in (1, 2, 3, 4)]
        assert sorted(news[2] for news in seen) == NAMES
        with pytest.raises(DiskFullError):
            CaseExecutor(cluster="local:2").map(half, [2, 99], NAMES[:2], [])
        found = CaseExecutor(cluster="local:2").map(half, [13, 8], ["thirteen", "eight"], [])
        assert isinstance(found[0], MedsegError)
        assert str(found[0]).startswith("thirteen: the worker ended")
        assert found[1] == 4
        found = CaseExecutor(cluster="local:2").map(half, [17, 8], ["large", "eight"], [])
        assert isinstance(found[0], ResourceError)
        assert str(found[0]).startswith("large: found too little memory (Unable to allocate 9. TiB)")
        assert found[1] == 4
    assert CaseExecutor(cluster="local:2").map(half, [], [], []) == []


def test_without_a_cluster_the_processes_are_those_of_this_machine():
    here = CaseExecutor().map(half, [2, 1], NAMES[:2], [])
    assert here[0] == 1
    assert isinstance(here[1], DataError)
    assert CaseExecutor(2).map(half, [2, 6], NAMES[:2], []) == [1, 3]
    assert CaseExecutor(None).map(half, [8], NAMES[:1], []) == [4]
