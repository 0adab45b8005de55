"""An ensemble of predictors: the mean of their probabilities on the file's grid.

The models may work at different spacings and in different orientations.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medseg.data.datasets.cases import Case
from medseg.errors import ModelError, warn_once
from medseg.inference.predictor import Predictor
from medseg.inference.preparation.image_source import Source
from medseg.inference.quality.assessment import Assessment
from medseg.inference.sliding.labelling import LabelRule
from medseg.inference.sliding.prepared_prediction import Note
from medseg.inference.uncertainty.case_evidence import EvidenceSums
from medseg.inference.uncertainty.logit_sample import LogitSampler
from medseg.io.probability_files import TOP, ProbabilityFile, reading_probabilities, writing_uncertainty
from medseg.labels.label_table import Labels
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume


@dataclass(frozen=True)
class Unprepared:
    """An image that each model of an ensemble will read and prepare.

    Attributes:
        source: As for `Predictor.prepare`.
        on_image: Called with the image as each model read it; None for nothing.
    """

    source: Source
    on_image: Callable[[Volume], None] | None = None


class PredictorEnsemble:
    """An ensemble of predictors with the same labels; call it with an image.

    Labels follow from the mean probability of each class or region. Models with temperatures take part with their calibrated
    probabilities, so that an overconfident model does not outvote the others. The probabilities of each model are written to a
    temporary file, so that the memory is that of one model. Post-processing is that of the first model. Keep folds of one
    model in one model folder instead, whose logits are averaged window by window.

    Args:
        predictors: One or more predictors.
        scratch: Folder for temporary files, which take two bytes per voxel, class and model; None for the system's folder.

    Attributes:
        predictors: The predictors.

    Raises:
        ModelError: There is no predictor, or their labels or channels differ.
    """

    def __init__(self, predictors: Sequence[Predictor], scratch: str | Path | None = None) -> None:
        require_same_task(predictors)
        self.predictors = list(predictors)
        self._scratch = scratch

    @property
    def max_memory(self) -> int | None:
        """The maximum resident memory of the process in bytes, taken from the first predictor."""
        return self.predictors[0].max_memory

    @property
    def labels(self) -> Labels:
        """The label table, which is the same for all predictors."""
        return self.predictors[0].labels

    def __call__(self, source: Source, *, progress: Progress | None = None) -> Volume:
        """Segment an image; see `Predictor.__call__`."""
        return self.run(self.prepare(source), progress=progress)

    def prepare(self, source: Source, *, on_image: Callable[[Volume], None] | None = None) -> Unprepared:
        """Return the image itself: every model prepares it in its own way, one after the other.

        Args:
            source: As for `Predictor.prepare`.
            on_image: Called by `run` with the image as each model read it; None for nothing.

        Returns:
            What `run` takes.
        """
        return Unprepared(source, on_image)

    def run(
        self,
        prepared: Unprepared,
        *,
        progress: Progress | None = None,
        probabilities: str | Path | None = None,
        uncertainty: str | Path | None = None,
        evidence: EvidenceSums | None = None,
        sampler: LogitSampler | None = None,
        note: Note = warn_once,
    ) -> Volume:
        """Segment an image; see `Predictor.run`. `sampler` is not supported, see `logit_sampler`."""
        first = self.predictors[0]
        with tempfile.TemporaryDirectory(prefix=".medseg-", dir=self._scratch) as folder:
            paths = [Path(folder) / f"{index}.nii" for index in range(len(self.predictors))]
            for predictor, path in zip(self.predictors, paths, strict=True):
                labels = predictor.run(
                    predictor.prepare(prepared.source, on_image=prepared.on_image),
                    progress=progress,
                    probabilities=path,
                    note=note,
                )
            with contextlib.ExitStack() as stack:
                mean = entropy = None
                if probabilities is not None:
                    calibrated = all(one.saved.temperatures for one in self.predictors)
                    mean = stack.enter_context(
                        first.writing_probabilities(probabilities, labels, calibrated=calibrated)
                    )
                if uncertainty is not None:
                    entropy = stack.enter_context(writing_uncertainty(uncertainty, labels))
                if evidence is not None:
                    evidence.begin_grid(labels.grid.voxel_volume / 1000)
                write_mean_labels(paths, first.engine.rule, labels, mean, entropy, evidence)
        return first.post_processed(labels)

    def evidence_sums(self) -> EvidenceSums:
        """Return an object that adds up the evidence of a case, for `run`."""
        return EvidenceSums(self.labels)

    def logit_sampler(self, case: Case) -> LogitSampler:
        """Raise `ModelError`: the logits of the models may be on different grids, and temperatures belong to one model."""
        raise ModelError(
            f"{case.id}: sample of logits: found {len(self.predictors)} models, expected one. Predict with one model."
        )

    @property
    def quality(self) -> None:
        """Nothing, because a quality model is fitted to the predictions of one model folder."""
        return None

    def assessment(self, on_image: Callable[[Volume], None] | None = None) -> Assessment:
        """Return the assessment of one case, with flags from the first model's training data; see `Predictor.assessment`."""
        first = self.predictors[0]
        return Assessment(first.saved, first.labels, None, on_image)


def require_same_task(predictors: Sequence[Predictor]) -> None:
    """Raise `ModelError` unless there are predictors and all have the same labels and channels."""
    if not predictors:
        raise ModelError("ensemble: found no model, expected one or more. Give model folders.")
    first = predictors[0]
    for number, predictor in enumerate(predictors[1:], 2):
        where = f"model {number} ({predictor.saved.name})"
        if _named(predictor.labels) != _named(first.labels):
            raise ModelError(
                f"{where}: labels: found {_named(predictor.labels)}, expected {_named(first.labels)}. "
                "Give models of one task."
            )
        if predictor.saved.channel_names != first.saved.channel_names:
            found, expected = (", ".join(p.saved.channel_names) for p in (predictor, first))
            raise ModelError(
                f"{where}: channels: found {found}, expected {expected}. Give models of the same images."
            )


def write_mean_labels(
    files: Sequence[Path],
    rule: LabelRule,
    labels: Volume,
    probabilities: ProbabilityFile | None = None,
    uncertainty: ProbabilityFile | None = None,
    evidence: EvidenceSums | None = None,
) -> None:
    """Fill a label map from the mean of probabilities, with one slice of each file in memory.

    Args:
        files: Probability files as of `writing_probabilities`, all on the grid of `labels`.
        rule: How probabilities become labels.
        labels: Label map to fill.
        probabilities: File to fill with the mean probabilities; None for none.
        uncertainty: File to fill with their entropy; None for none.
        evidence: Filled with sums over the mean probabilities; None for none.
    """
    for index, slices in enumerate(zip(*map(reading_probabilities, files), strict=True)):
        total = np.asarray(np.sum(slices, axis=0, dtype=np.uint32))
        labels.data[0, :, :, index] = rule.values[rule.classes_of_sums(total, len(slices))]
        if probabilities is not None:
            mean = np.rint(total / len(slices)).astype(np.uint16)
            probabilities.array()[:, :, :, index] = np.moveaxis(mean, -1, 0)
        if uncertainty is None and evidence is None:
            continue
        values = torch.from_numpy(total / (len(slices) * int(TOP))).float()
        if uncertainty is not None:
            entropy = rule.entropy(values).amax(-1).clamp(0, 1).numpy()
            uncertainty.array()[0, :, :, index] = uncertainty.encoded(entropy)
        if evidence is not None:
            evidence.add_probabilities(values)


def _named(labels: Labels) -> str:
    listed = [f"{label.name} {label.value}" for label in labels]
    listed += [f"{r.name} {'+'.join(map(str, r.values))} as {r.output_value}" for r in labels.regions]
    return ", ".join(listed)
