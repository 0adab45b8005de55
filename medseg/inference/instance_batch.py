"""Instances of image files: beside each label map an instance map and a table of classes and scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from medseg.data.datasets.cases import Case
from medseg.errors import MedsegError
from medseg.inference.batch import Outcome, Recording, memory_error_as_data_error, without_recording
from medseg.inference.instances.image_instances import image_instances, require_instance_model
from medseg.inference.predictor import Predictor
from medseg.io.files import write
from medseg.io.instance_files import instance_map_path, write_instances
from medseg.labels.instances import Instances
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume


def label_map_of(predictor: Predictor, instances: Instances, like: Volume) -> Volume:
    """The label map `(1, X, Y, Z)` that instances stand for, with the labels' values, on the grid of `like`."""
    values = predictor.engine.rule.values[instances.to_label_map()]
    return Volume(values[None], like.grid, "label", like.header)


def predict_instance_files(
    predictor: Predictor,
    pairs: Iterable[tuple[Case, Path]],
    *,
    progress: Progress | None = None,
    recording: Recording = without_recording,
) -> Iterator[Outcome]:
    """Write, for every image, instance map, table and the label map of the instances' classes, in this order.

    Args:
        predictor: of a 2-D instance model.
        pairs: image and the file of its label map; see `instance_file` for the others.
        progress: called with (done, total, "slice") of each image.
        recording: gives the context that the writing of a case is done in, see `predict_files`.

    Yields:
        An outcome per pair, in order, once its files are written. An image that cannot be used does not stop the others.

    Raises:
        ModelError: the model finds no instances.
    """
    require_instance_model(predictor.model, predictor.saved, predictor.labels)
    for case, target in pairs:
        yield _predicted(predictor, case, target, progress, recording)


def _predicted(
    predictor: Predictor, case: Case, target: Path, progress: Progress | None, recording: Recording
) -> Outcome:
    began = time.perf_counter()
    times = [began] * 4
    error: MedsegError | None = None
    try:
        with memory_error_as_data_error(case):
            volume, where = predictor.read(case)
            times[1:] = [time.perf_counter()] * 3
            found = image_instances(
                predictor.network, predictor.saved, predictor.labels, volume, where=where, progress=progress
            )
            times[2:] = [time.perf_counter()] * 2
            with recording(target):
                write_instances(found, volume, instance_map_path(target), predictor.labels)
                write(label_map_of(predictor, found, volume), target)
        times[3] = time.perf_counter()
    except MedsegError as refused:
        error = refused
    reading, network, writing = np.diff(times).tolist()
    return Outcome(case, target, error, reading, network, writing)
