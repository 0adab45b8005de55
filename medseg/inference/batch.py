"""Many images through one model: the next is read and the last is written while the network works."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medseg.data.datasets.cases import Case
from medseg.errors import DataError, MedsegError
from medseg.inference.provenance import probabilities_path
from medseg.io.files import write
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume

Recording = Callable[[Path], AbstractContextManager[None]]


def without_recording(target: Path) -> AbstractContextManager[None]:
    """Write `target` without a note of what made it."""
    return nullcontext()


@contextmanager
def memory_error_as_data_error(case: Case) -> Generator[None]:
    """Turn a lack of memory into a `DataError` of this image, so that others go on.

    Raises:
        DataError: the memory did not suffice.
    """
    try:
        yield
    except MemoryError as error:
        reason = " ".join(str(error).split()) or "an array could not be made"
        raise DataError(
            f"{case.id}: found too little memory ({reason:.200}). Give --max-memory, or use a larger machine."
        ) from error


class Segmenter(Protocol):
    """A `Predictor`, or several `Together`."""

    @property
    def max_memory(self) -> int | None:
        """Bytes that the process stays below, if a budget was given."""

    def prepare(self, source: Case) -> Any:
        """Read and prepare an image."""

    def run(
        self, prepared: Any, *, progress: Progress | None = None, probabilities: str | Path | None = None
    ) -> Volume:
        """Segment it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        case: the image. target: the file of its label map.
        error: why there is none; None when it was written.
        reading, network, writing: seconds; reading and writing overlap with the network of other images.
    """

    case: Case
    target: Path
    error: MedsegError | None = None
    reading: float = 0.0
    network: float = 0.0
    writing: float = 0.0


def predict_files(
    predictor: Segmenter,
    pairs: Iterable[tuple[Case, Path]],
    *,
    progress: Progress | None = None,
    probabilities: bool = False,
    recording: Recording = without_recording,
) -> Iterator[Outcome]:
    """Segment images and write their label maps, each in one step.

    Args:
        predictor: loaded once for all.
        pairs: image and the file to write.
        progress: called with (done, total, "window") of each image.
        probabilities: write ``NAME_probabilities.nii`` beside ``NAME.nii.gz``, too.
        recording: gives the context that the writing of a file is done in, such as `MadeBy.noting` with its maker.

    Yields:
        An outcome per pair, in order, once its file is written. An image that cannot be used does not stop the others.
    """
    # With a budget, the next image is not read ahead: what it will take is not yet known.
    ahead = predictor.max_memory is None
    todo = iter(pairs)
    with keep_freed_memory(ahead), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            pair = next(todo, None)
            reading = reader.submit(_read, predictor, pair[0]) if pair else None
            written: Future[Outcome] | None = None
            while pair is not None and reading is not None:
                case, target = pair
                read = reading.result()
                pair = next(todo, None)
                if ahead and pair is not None:
                    reading = reader.submit(_read, predictor, pair[0])
                done = _segment(predictor, case, target, read, progress, probabilities)
                if written is not None:
                    yield written.result()
                written = writer.submit(_write, *done, recording)
                del read, done
                if not ahead and pair is not None:
                    reading = reader.submit(_read, predictor, pair[0])
            if written is not None:
                yield written.result()
        finally:
            reader.shutdown(wait=True, cancel_futures=True)


_Read = tuple[Any, MedsegError | None, float]


def _read(predictor: Segmenter, case: Case) -> _Read:
    began = time.perf_counter()
    try:
        with memory_error_as_data_error(case):
            prepared = predictor.prepare(case)
    except MedsegError as error:
        return None, error, time.perf_counter() - began
    return prepared, None, time.perf_counter() - began


def _segment(
    predictor: Segmenter,
    case: Case,
    target: Path,
    read: _Read,
    progress: Progress | None,
    probabilities: bool,
) -> tuple[Outcome, Volume | None]:
    prepared, error, reading = read
    if prepared is None:
        return Outcome(case, target, error, reading), None
    began = time.perf_counter()
    try:
        with memory_error_as_data_error(case):
            path = probabilities_path(target) if probabilities else None
            labels = predictor.run(prepared, progress=progress, probabilities=path)
    except MedsegError as refused:
        return Outcome(case, target, refused, reading), None
    return Outcome(case, target, None, reading, time.perf_counter() - began), labels


def _write(outcome: Outcome, labels: Volume | None, recording: Recording) -> Outcome:
    if labels is None:
        return outcome
    began = time.perf_counter()
    error: MedsegError | None = None
    try:
        with memory_error_as_data_error(outcome.case), recording(outcome.target):
            write(labels, outcome.target)
    except MedsegError as refused:
        error = refused
    writing = time.perf_counter() - began
    return Outcome(outcome.case, outcome.target, error, outcome.reading, outcome.network, writing)
