"""Predict many images with one model: read the next and write the last while the network works."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from medseg.data.datasets.cases import Case
from medseg.errors import MedsegError, ResourceError
from medseg.inference.cohort.voxel_state import InputRecorder, VoxelState
from medseg.inference.cohort.written_files import (
    NO_KINDS,
    FileKind,
    FileKinds,
    logit_sample_path,
    probabilities_path,
    uncertainty_path,
)
from medseg.inference.pipeline import pipelined
from medseg.inference.quality.assessment import Assessment
from medseg.inference.quality.case_quality import CaseQuality
from medseg.inference.quality.image_features import Features
from medseg.inference.quality.quality_model import QualityModel
from medseg.inference.sliding.prepared_prediction import Note
from medseg.inference.uncertainty.case_evidence import CaseEvidence, EvidenceSums
from medseg.inference.uncertainty.logit_sample import LogitSampler
from medseg.io.files import suffix_of, write
from medseg.io.segmentation_files import DICOM_SEGMENTATIONS, check_source_series
from medseg.labels.label_table import Labels
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.runtime.memory import ItemPeaks, process_memory
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume

_Result = TypeVar("_Result")


class Recording(Protocol):
    """Returns the context in which the files of a case are written."""

    def __call__(
        self, outcome: Outcome, label_map: Volume, peak: Callable[[], int] = process_memory
    ) -> AbstractContextManager[None]:
        """Return the context.

        Args:
            outcome: What is known about the case before its files are written.
            label_map: The label map that is written.
            peak: Returns the largest resident bytes of the process since the case was begun.

        Returns:
            A context; leaving it without an error records the case.
        """


def without_recording(
    outcome: Outcome, label_map: Volume, peak: Callable[[], int] = process_memory
) -> AbstractContextManager[None]:
    """Return a context that records nothing about the writing of a case."""
    return nullcontext()


@contextmanager
def memory_error_as_resource_error(case: Case) -> Generator[None]:
    """Convert an error for lack of memory into ResourceError so that the batch continues with the next case.

    Args:
        case: The case that is predicted, named in the message.

    Raises:
        ResourceError: The memory did not suffice for this case.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"{case.id}: found too little memory ({out_of_memory_reason(error)}). Give --max-memory, or use a larger machine."
        ) from error


class Segmenter(Protocol):
    """A `Predictor` or a `PredictorEnsemble`."""

    @property
    def labels(self) -> Labels:
        """The labels that are predicted."""

    @property
    def max_memory(self) -> int | None:
        """The resident bytes that the process must not exceed, or None without a budget."""

    def evidence_sums(self) -> EvidenceSums:
        """Return an object that adds up the evidence of a case."""

    def prepare(self, source: Case, *, on_image: Callable[[Volume], None] | None = None) -> Any:
        """Read and prepare an image; call `on_image` with the image as it was read, here or in `run`."""

    def run(
        self,
        prepared: Any,
        *,
        progress: Progress | None = None,
        probabilities: str | Path | None = None,
        uncertainty: str | Path | None = None,
        evidence: EvidenceSums | None = None,
        sampler: LogitSampler | None = None,
        note: Note = ...,
    ) -> Volume:
        """Segment a prepared image."""

    def logit_sampler(self, case: Case) -> LogitSampler:
        """Return an object that records a sample of the logits of a case; an ensemble raises `ModelError`."""

    @property
    def quality(self) -> QualityModel | None:
        """The quality model, which needs the evidence of each case; None if there is none."""

    def assessment(self, on_image: Callable[[Volume], None] | None = None) -> Assessment:
        """Return the assessment of one case, which is called with the image and then with its prediction."""


@dataclass(frozen=True)
class Outcome:
    """The result of predicting one case.

    Attributes:
        case: The case.
        target: File of its label map.
        error: Why there is no label map; None if it was written.
        notes: Sentences about an image or a volume unlike those of the training, and about a prediction that was not done as
            planned, such as in another precision.
        reading: Seconds spent on reading and preparing, in parallel with the network of the previous case.
        network: Seconds spent in the network and on resampling to the file's grid.
        writing: Seconds spent on writing, in parallel with the network of the next case.
        input: Content of the image that was read; None if it could not be read.
        peak_memory: Largest resident bytes of the process from the reading of this case to its writing, including
            what overlapping cases took.
        evidence: Sums over the probabilities; None unless they were wanted.
        features: Properties of the image and the prediction by kind; None unless evidence was wanted.
        quality: Estimates and flags; None if there is no label map, or for instances.
    """

    case: Case
    target: Path
    error: MedsegError | None = None
    notes: tuple[str, ...] = ()
    reading: float = 0.0
    network: float = 0.0
    writing: float = 0.0
    input: VoxelState | None = None
    peak_memory: int = 0
    evidence: CaseEvidence | None = None
    features: Features | None = None
    quality: CaseQuality | None = None

    @property
    def seconds(self) -> float:
        """The seconds of all stages together."""
        return self.reading + self.network + self.writing

    def after(
        self, stage: Literal["reading", "network", "writing"], action: Callable[[], _Result]
    ) -> tuple[Outcome, _Result | None]:
        """Run a stage and return the outcome with its seconds or its error, and what the stage returned.

        A `MedsegError` or a lack of memory becomes the outcome's error, so that it does not stop other cases. Nothing is
        run after an error.

        Args:
            stage: Name of the stage, under which its seconds are kept.
            action: The stage.

        Returns:
            The new outcome and the result of `action`, which is None after an error.
        """
        if self.error is not None:
            return self, None
        began = time.perf_counter()
        result, error = None, None
        try:
            with memory_error_as_resource_error(self.case):
                result = action()
        except MedsegError as refused:
            error = refused
        seconds: dict[str, Any] = {stage: time.perf_counter() - began}
        return replace(self, error=error, **seconds), result


def predict_files(
    predictor: Segmenter,
    pairs: Iterable[tuple[Case, Path]],
    *,
    progress: Progress | None = None,
    kinds: FileKinds = NO_KINDS,
    evidence: bool = False,
    recording: Recording = without_recording,
    write: Callable[[Volume, Path], None] = write,
) -> Iterator[Outcome]:
    """Segment images and write their label maps.

    Each label map appears at its place only once it is complete.

    Args:
        predictor: The loaded model, used for all images.
        pairs: Each case and the file of its label map.
        progress: Called with (done, total, "window") of each image.
        kinds: The kinds of files to write next to ``NAME.nii.gz``, except instances.
        evidence: Add up the probabilities of each case, see `medseg.inference.uncertainty.case_evidence`, and keep the properties
            of the image and its prediction. Both are done anyway for a model with a quality model.
        recording: Returns the context in which a label map is written, such as `CaseRecords.recording` with a model.
        write: Writes a label map to its file, such as `medseg.write` with the names of the labels.

    Yields:
        One outcome per case, in order, once its file is written. A case that fails does not stop the others.
    """
    # With a budget, the next image is not read ahead, because what it will take is not known yet.
    read_ahead = predictor.max_memory is None
    with keep_freed_memory(read_ahead), ItemPeaks() as peaks:
        stages = _Stages(predictor, kinds, evidence or predictor.quality is not None, peaks, recording, write)
        yield from pipelined(
            pairs,
            stages.read,
            partial(stages.segment, progress=progress),
            stages.write,
            read_ahead=read_ahead,
        )


@dataclass(frozen=True)
class _Ready:
    """A case whose image was prepared, and what watched its reading; without an image after an error."""

    outcome: Outcome
    prepared: Any
    recorder: InputRecorder
    assessment: Assessment


@dataclass(frozen=True)
class _Segmented:
    """A case with its label map, or without one after an error."""

    outcome: Outcome
    labels: Volume | None
    sampler: LogitSampler | None


@dataclass(frozen=True)
class _Stages:
    """What is done with each case of a batch; the stages of different cases run at the same time."""

    predictor: Segmenter
    kinds: FileKinds
    evidence: bool
    peaks: ItemPeaks
    recording: Recording
    write_file: Callable[[Volume, Path], None]

    def read(self, pair: tuple[Case, Path]) -> _Ready:
        """Read and prepare an image."""
        outcome, recorder = Outcome(*pair), InputRecorder(pair[0])
        assessment = self.predictor.assessment(recorder)
        self.peaks.start(outcome.target)
        on_image = _checking_source(assessment, outcome.target)
        outcome, prepared = outcome.after(
            "reading", lambda: self.predictor.prepare(pair[0], on_image=on_image)
        )
        return _Ready(outcome, prepared, recorder, assessment)

    def segment(self, ready: _Ready, progress: Progress | None) -> _Segmented:
        """Predict the label map, the files next to it, and the quality."""
        outcome, target = ready.outcome, ready.outcome.target
        sampler = self.predictor.logit_sampler(outcome.case) if FileKind.LOGIT_SAMPLE in self.kinds else None
        sums = self.predictor.evidence_sums() if self.evidence else None
        notes: list[str] = []

        def predict() -> tuple[Volume, CaseQuality]:
            labels = self.predictor.run(
                ready.prepared,
                progress=progress,
                probabilities=probabilities_path(target) if FileKind.PROBABILITIES in self.kinds else None,
                uncertainty=uncertainty_path(target) if FileKind.UNCERTAINTY in self.kinds else None,
                evidence=sums,
                sampler=sampler,
                note=notes.append,
            )
            return labels, ready.assessment.finish(labels, None if sums is None else sums.evidence())

        outcome, found = outcome.after("network", predict)
        if found is not None:
            where = str(outcome.case.images[0])
            notes += [flag.note(where) for flag in found[1].flags]
            outcome = replace(outcome, quality=found[1])
            if sums is not None:
                outcome = replace(outcome, evidence=sums.evidence(), features=ready.assessment.features)
        outcome = replace(outcome, notes=tuple(dict.fromkeys(notes)), input=ready.recorder.state)
        return _Segmented(outcome, None if found is None else found[0], sampler)

    def write(self, done: _Segmented) -> Outcome:
        """Write the label map and record the case."""
        target = done.outcome.target

        def write_recorded() -> None:
            assert done.labels is not None
            with self.recording(done.outcome, done.labels, lambda: self.peaks.peak(target)):
                if done.sampler is not None:
                    done.sampler.write(logit_sample_path(target))
                self.write_file(done.labels, target)

        written, _ = done.outcome.after("writing", write_recorded)
        return replace(written, peak_memory=self.peaks.end(target))


def _checking_source(on_image: Callable[[Volume], None], target: Path) -> Callable[[Volume], None]:
    """Return a function that calls `on_image` with an image after a check that a DICOM segmentation can refer to it."""
    if suffix_of(target) not in DICOM_SEGMENTATIONS:
        return on_image

    def check_and_call(volume: Volume) -> None:
        check_source_series(volume, target)
        on_image(volume)

    return check_and_call
