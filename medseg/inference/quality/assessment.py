"""Assess one prediction: measure image and labels, and compare them with what the model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from medseg.data.preprocessing.training_data import annotated_volumes, measure_image
from medseg.data.preprocessing.unlike_training import Deviation, image_deviations, volume_deviations
from medseg.inference.quality.case_quality import CaseQuality, Flag, FlagKind
from medseg.inference.quality.image_features import Features, IntensitySample, image_features
from medseg.inference.quality.label_features import label_features
from medseg.inference.quality.quality_model import QualityModel
from medseg.inference.uncertainty.case_evidence import CaseEvidence
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.volumes.volume import Volume


class AssessedLabels(NamedTuple):
    """A label map and its quality.

    Attributes:
        labels: The label map.
        quality: Estimates and flags.
    """

    labels: Volume
    quality: CaseQuality


class Assessment:
    """The assessment of one case: call it with the image, then `finish` it with the prediction.

    Args:
        saved: Settings of the model, with the record of its training images.
        labels: Labels of the model.
        model: The quality model; None if the model folder has none. There are flags from the training distribution only then.
        on_image: Called with the image, too; None for nothing.

    Attributes:
        features: The properties that were measured so far.
    """

    def __init__(
        self,
        saved: SavedModel,
        labels: Labels,
        model: QualityModel | None,
        on_image: Callable[[Volume], None] | None = None,
    ) -> None:
        self._saved, self._labels, self._model, self._on_image = saved, labels, model, on_image
        self._sample: IntensitySample | None = None
        self._deviations: tuple[Deviation, ...] = ()
        self.features: Features = {}

    def __call__(self, image: Volume) -> None:
        """Measure the image.

        Args:
            image: Image `(C, X, Y, Z)` as read from its file.
        """
        if self._on_image is not None:
            self._on_image(image)
        saved, settings = self._saved, self._saved.preprocessing
        measures = measure_image(image, settings)
        if saved.training_data is not None:
            found = image_deviations(measures, saved.training_data, settings, saved.channel_names)
            self._deviations = tuple(found)
        self.features = image_features(image, saved.channel_names)
        if measures.spacing is not None and measures.extent is not None:
            axes = [f"axis {number}" for number in range(3)]
            self.features["voxel size"] = dict(zip(axes, measures.spacing, strict=True))
            self.features["field of view"] = dict(zip(axes, measures.extent, strict=True))
        self._sample = IntensitySample.from_image(image)

    def finish(self, label_map: Volume, evidence: CaseEvidence | None) -> CaseQuality:
        """Measure the prediction and return what is known about its quality.

        Args:
            label_map: The label map `(1, X, Y, Z)` with the labels' values.
            evidence: Sums over its probabilities; None if they were not formed.

        Returns:
            Estimates and flags.
        """
        of_labels = label_features(label_map, self._labels, self._sample, self._saved.channel_names)
        self._sample = None  # not needed any more
        self.features = {**self.features, **of_labels, **evidence_features(evidence)}
        found = CaseQuality() if self._model is None else self._model.judge(self.features)
        data = self._saved.training_data
        if data is None:
            return found.with_flags(found.flags)
        deviations = list(self._deviations)
        if not label_map.grid.in_pixels:
            volumes = annotated_volumes(label_map.data, label_map.grid.voxel_volume, self._labels)
            deviations += volume_deviations(volumes, data)
        kinds = {flag.kind for flag in found.flags}
        more = [flag for flag in _flags(deviations) if flag.kind not in kinds]
        return found.with_flags((*found.flags, *more))


def evidence_features(evidence: CaseEvidence | None) -> Features:
    """Return the properties of a prediction that follow from its probabilities.

    Args:
        evidence: Sums over the probabilities; None without.

    Returns:
        By kind and label: ``expected soft Dice``, ``confidence`` (mean probability inside) and ``uncertain band`` (volume of
        the band relative to the predicted volume), without what is not known.
    """
    found: Features = {}
    for one in () if evidence is None else evidence.outputs:
        values = {
            "expected soft Dice": one.expected_dice,
            "confidence": one.mean_probability_inside,
            "uncertain band": one.band / one.predicted if one.predicted else None,
        }
        for kind, value in values.items():
            if value is not None:
                found.setdefault(kind, {})[one.name] = float(f"{value:.6g}")
    return found


def _flags(deviations: Iterable[Deviation]) -> list[Flag]:
    """Return deviations from the training data as flags."""
    return [
        Flag(
            FlagKind.VOLUME if one.field.startswith("volume of ") else FlagKind.IMAGE,
            one.field,
            one.found,
            one.expected,
        )
        for one in deviations
    ]
