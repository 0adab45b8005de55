"""Predict the instances of many images: an instance map, a table of classes and scores, and a label map for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.inference.cohort.batch import Outcome, Recording, without_recording
from medseg.inference.cohort.voxel_state import InputRecorder
from medseg.inference.predictor import Predictor
from medseg.io.companions.instance_files import instance_map_path, write_instances
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.runtime.memory import ItemPeaks
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume


def label_map_of(predictor: Predictor, instances: Instances, like: Volume) -> Volume:
    """Return the label map of the instances' classes.

    Args:
        predictor: The model, which knows the labels' values.
        instances: Instances of the volume `(X, Y, Z)`.
        like: Volume whose grid and header the label map gets.

    Returns:
        Label map `(1, X, Y, Z)` with the labels' values.
    """
    values = predictor.engine.rule.values[instances.to_label_map()]
    return Volume(values[None], like.grid, "label", like.header)


def predict_instance_files(
    predictor: Predictor,
    pairs: Iterable[tuple[Case, Path]],
    *,
    progress: Progress | None = None,
    recording: Recording = without_recording,
) -> Iterator[Outcome]:
    """Write the instance map, the table and the label map of each image, in this order.

    Args:
        predictor: An instance model.
        pairs: Each case and the file of its label map; see `instance_map_path` for the others.
        progress: Called with (done, total, what) of each image.
        recording: Returns the context in which the files of a case are written, see `predict_files`.

    Yields:
        One outcome per case, in order, once its files are written. A case that fails does not stop the others.

    Raises:
        ModelError: The model does not find instances.
    """
    predictor.require_instances()
    with ItemPeaks() as peaks:
        for case, target in pairs:
            peaks.start(target)
            outcome = _predicted(predictor, Outcome(case, target), progress, recording, peaks)
            yield replace(outcome, peak_memory=peaks.end(target))


def _predicted(
    predictor: Predictor,
    outcome: Outcome,
    progress: Progress | None,
    recording: Recording,
    peaks: ItemPeaks,
) -> Outcome:
    """Read a case, find its instances and write its files."""
    target, recorder = outcome.target, InputRecorder(outcome.case)

    def read() -> tuple[Volume, str]:
        found = predictor.read(outcome.case)
        recorder(found[0])
        return found

    outcome, image = outcome.after("reading", read)
    outcome = replace(outcome, input=recorder.state)
    if image is None:
        return outcome
    volume, where = image

    notes: list[str] = []

    def find() -> Instances:
        return predictor.instances_in(volume, where, progress=progress, note=notes.append)

    outcome, found = outcome.after("network", find)
    outcome = replace(outcome, notes=tuple(dict.fromkeys(notes)))
    if found is None:
        return outcome

    def write_all() -> None:
        label_map = label_map_of(predictor, found, volume)
        with recording(outcome, label_map, lambda: peaks.peak(target)):
            write_instances(found, volume, instance_map_path(target), predictor.labels)
            write(label_map, target)

    return outcome.after("writing", write_all)[0]
