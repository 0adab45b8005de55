"""Prediction of many cases on a Dask cluster: one task per case, and one loading of the models per worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from medseg.cluster.dask_cluster import connected, workers_per_host
from medseg.cluster.dask_tasks import WorkerLost, map_on_cluster
from medseg.data.datasets.cases import Case
from medseg.errors import DataError
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_records import CaseRecords, CaseState
from medseg.inference.cohort.loaded_models import LoadedModels, ModelSource, predict_pairs
from medseg.inference.cohort.output_files import OutputFiles
from medseg.io.files import stem_of
from medseg.runtime.machine import usable_cores
from medseg.runtime.memory import share_free_memory

Pair = tuple[Case, Path]
_ONE_CASE = (
    threading.Lock()
)  # for workers that were started with several threads: a loaded model works on one case at a time
Task = tuple[Pair, str | None]
"""A case with its label map, and the identifier of its present record."""


@dataclass(frozen=True)
class PredictOnWorker:
    """The task of a worker: the prediction of one case.

    Attributes:
        source: The models, in folders that all workers can read.
        outputs: The folder and the kinds of files to write.
        records: The records of the folder.
        device: Device of the workers; None for CUDA if available.
        workers: Number of workers that share a machine.
    """

    source: ModelSource
    outputs: OutputFiles
    records: CaseRecords
    device: str | None
    workers: int

    def __call__(self, task: Task) -> Outcome:
        """Predict a case, unless a lost worker has done so; the first one of a worker loads the models."""
        import torch

        pair, before = task
        record = self.records.get(stem_of(pair[1]))
        if record is not None and record.id != before and not record.is_unfinished:
            # The worker was lost after it had recorded the case, and before its outcome arrived.
            failed = record.state is CaseState.FAILED
            return Outcome(*pair, error=DataError(record.message) if failed else None, network=record.seconds)
        with _ONE_CASE:
            torch.set_num_threads(max(1, usable_cores() // self.workers))
            share_free_memory(self.workers)
            models = _loaded(json.dumps([asdict(self.source), self.device]))
            (outcome,) = predict_pairs(models, self.outputs, self.records, [pair])
        return outcome


@lru_cache(maxsize=1)
def _loaded(text: str) -> LoadedModels:
    """Load models; the last ones stay loaded."""
    source, device = json.loads(text)
    return LoadedModels.load(
        source["folders"],
        source["settings"],
        device=device,
        max_memory=source["max_memory"],
        max_device_memory=source["max_device_memory"],
    )


@contextmanager
def prediction_on_cluster(
    cluster: str, source: ModelSource, outputs: OutputFiles, records: CaseRecords, device: str | None
) -> Iterator[Callable[[Iterable[Pair]], Iterator[Outcome]]]:
    """Connect to a cluster whose workers share the disk with this process.

    Args:
        cluster: As for `connected`.
        source: The models.
        outputs: The folder and the kinds of files to write.
        records: The records of the folder.
        device: Device of the workers; None for CUDA if available.

    Yields:
        A function that predicts pairs of case and label map, and yields their outcomes in the order in which they are done.

    Raises:
        ConfigError: The cluster is described wrongly.
        ResourceError: The cluster cannot be reached or started.
    """
    absolute = replace(source, folders=tuple(str(Path(folder).absolute()) for folder in source.folders))
    elsewhere = replace(outputs, folder=outputs.folder.absolute())
    with connected(cluster) as client:
        work = PredictOnWorker(absolute, elsewhere, records.absolute(), device, workers_per_host(client))

        def predict(pairs: Iterable[Pair]) -> Iterator[Outcome]:
            given: dict[Path, Pair] = {}  # with the names by which the user knows the files

            def tasks() -> Iterator[Task]:
                for pair in pairs:
                    moved, record = _absolute(pair), records.get(stem_of(pair[1]))
                    given[moved[1]] = pair
                    yield moved, None if record is None else record.id

            for ((_, moved), _), result in map_on_cluster(client, work, tasks()):
                case, target = given.pop(moved)
                if isinstance(result, WorkerLost):
                    outcome = Outcome(case, target, error=WorkerLost(f"{case.id}: {result}"))
                    records.write_failure(outcome)
                    yield outcome
                else:
                    yield replace(result, case=case, target=target)

        yield predict


def _absolute(pair: Pair) -> Pair:
    """Return a case and its label map with paths that do not depend on the folder of the process."""
    case, target = pair
    images = tuple(path.absolute() for path in case.images)
    first_stage = None if case.first_stage is None else case.first_stage.absolute()
    return replace(case, images=images, first_stage=first_stage), target.absolute()
