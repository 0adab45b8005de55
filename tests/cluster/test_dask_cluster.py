"""Tasks on a Dask cluster of this machine: workers and schedulers that end unexpectedly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from medseg.cluster import dask_cluster
from medseg.cluster.dask_cluster import check_cluster, connected, workers_per_host
from medseg.cluster.dask_tasks import WorkerLost, map_on_cluster
from medseg.errors import ConfigError, ResourceError

distributed = pytest.importorskip("distributed", reason="the extra medseg[cluster] is not installed")


@dataclass(frozen=True)
class Tries:
    """Notes the process of each try; some items end their worker, always or the first time."""

    folder: Path
    seconds: float = 0.0

    def __call__(self, item):
        notes = self.folder / item
        with notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if item == "fatal" or (item == "once" and len(notes.read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "wrong":
            raise ValueError("a fault of the program")
        return item.upper()


@pytest.mark.slow
def test_a_lost_task_is_tried_twice_more_and_does_not_harm_others(tmp_path, forked_workers):
    before = set(multiprocessing.active_children())
    numbers = [str(number) for number in range(12)]
    # Dask keeps the first tasks at a worker in advance, where they are lost with it without having been tried.
    items = [*numbers[:6], "once", "fatal", *numbers[6:]]
    with connected("local:2") as client:
        assert workers_per_host(client) == 2
        found = dict(map_on_cluster(client, Tries(tmp_path), items))
    assert sorted(found) == sorted(items)
    assert isinstance(found.pop("fatal"), WorkerLost)
    assert found == {item: item.upper() for item in items if item != "fatal"}
    tries = {item: len((tmp_path / item).read_text().split()) for item in items}
    assert tries.pop("fatal") == 3
    assert tries.pop("once") >= 2
    lost_workers = (
        4  # "fatal" ends three of them, "once" one; results that a lost worker still held are lost, too
    )
    assert max(tries.values()) <= 1 + lost_workers
    for process in set(multiprocessing.active_children()) - before:
        process.join(60)
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.slow
def test_items_are_consumed_a_few_ahead_and_errors_end_the_operation(tmp_path, forked_workers):
    consumed = []

    def items():
        for number in range(100):
            consumed.append(number)
            yield str(number) if number else "wrong"

    with connected("local:1") as client, pytest.raises(ValueError, match="a fault of the program"):
        list(map_on_cluster(client, Tries(tmp_path), items()))
    assert len(consumed) <= 3


@pytest.mark.slow
def test_a_worker_that_does_not_start_again_is_replaced(tmp_path, monkeypatch, forked_workers):
    """The process that starts a worker again has ended itself, as after a failed start."""
    monkeypatch.setitem(dask_cluster._SETTINGS, "distributed.deploy.lost-worker-timeout", "1s")
    monkeypatch.setattr("medseg.cluster.dask_tasks._LOOK_AGAIN", 1.0)
    with connected("local:1") as client:
        found = {}
        for item, result in map_on_cluster(client, Tries(tmp_path, 0.1), map(str, range(8))):
            found[item] = result
            if len(found) == 2:
                (nanny,) = client.cluster.workers.values()
                client.sync(nanny.close)
    assert found == {str(number): str(number) for number in range(8)}


@pytest.mark.parametrize("text", ["", "local", "local:", "local:0", "4", "host:8786", "cluster.json"])
def test_other_descriptions_are_refused(text):
    with pytest.raises(ConfigError, match=r"cluster: found"):
        check_cluster(text)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with (
        pytest.raises(
            ResourceError, match=r"cluster tcp://127.0.0.1:9: cannot be reached or started \(Timed out\)"
        ),
        connected("tcp://127.0.0.1:9"),
    ):
        pass


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(
        dask_cluster.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(ConfigError, match=r"found no distributed.* pip install 'medseg\[cluster\]'"):
        check_cluster("local:2")
