"""Prepare images for the network of a model: cropped, reoriented, resampled, normalised, and with the result of a first stage."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from numpy.typing import DTypeLike

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_first_stage
from medseg.data.preprocessing.prepare import Box, LabelTarget, Prepared, label_slices, label_target, prepare
from medseg.data.preprocessing.unlike_training import image_notes
from medseg.inference.preparation.crop_around import crop_box, not_yet_cropped
from medseg.inference.preparation.prepare_raw import prepare_raw
from medseg.inference.sliding.cascade_input import EMPTY_FIRST_STAGE, CascadeInput
from medseg.inference.sliding.prepared_prediction import Note, PreparedPrediction
from medseg.inference.sliding.skip_empty import body_box, empty_limits
from medseg.inference.sliding.slices import LazyImage
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.window_network import SLAB_FIRST
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import SavedModel
from medseg.runtime.progress import Progress
from medseg.volumes.orientation import reorient_array
from medseg.volumes.volume import Volume


class FirstStage(Protocol):
    """The predictor of the first stage of a cascade."""

    @property
    def labels(self) -> Labels:
        """The labels that it predicts."""

    def prepare(self, source: Volume) -> PreparedPrediction:
        """Prepare an image."""

    def run(self, prepared: PreparedPrediction, *, progress: Progress | None, note: Note) -> Volume:
        """Return the label map of a prepared image."""


class ImagePreparation:
    """The preparation of images for the network of a model.

    Args:
        saved: Settings of the model.
        dtype: Integer type of the label maps.
        first_stage: Predictor of the first stage of a cascade; None for a model without one.
        exclusive: Lock to hold during the preparation, whose memory must not count as the network's. The caller of
            `prepared` holds it.
    """

    def __init__(
        self,
        saved: SavedModel,
        dtype: DTypeLike,
        first_stage: FirstStage | None,
        exclusive: AbstractContextManager[Any],
    ) -> None:
        self._saved, self._dtype = saved, dtype
        self._first_stage, self._exclusive = first_stage, exclusive

    def prepared(self, volume: Volume, where: str, case: Case | None = None) -> PreparedPrediction:
        """Prepare an image.

        Args:
            volume: Image `(C, X, Y, Z)` as read from its file.
            where: File or case, for messages.
            case: The case of the image, which may come with a label map of the first stage; None for an image without a case.

        Returns:
            The prepared image, and the label map on the grid of the file. The first stage of a cascade has not been run yet.

        Raises:
            DataError: The image does not fit the model.
        """
        if self._saved.crop_around is None:
            return self._prepare_part(volume, where, case)
        whole = not_yet_cropped(volume, self._saved, self._dtype, where)
        return replace(whole, run_first_stage=partial(self._crop_and_prepare, volume, whole))

    def _prepare_part(self, volume: Volume, where: str, case: Case | None) -> PreparedPrediction:
        """Prepare an image, or the part of it to which it was cropped."""
        saved, settings = self._saved, self._saved.preprocessing
        notes = image_notes(volume, saved.training_data, settings, saved.channel_names, where)
        if settings.resample_raw is not None:
            return replace(prepare_raw(volume, saved, self._dtype, where, self._body), notes=notes)
        prepared = prepare(volume, settings, where=where, box=self._body(volume))
        target = label_target(prepared, settings, self._dtype)
        empty = empty_limits(settings, prepared.slices.lowest) if saved.predict.skip_empty else None
        axes = self._axes(target)
        if self._first_stage is None or saved.crop_around is not None:
            image = LazyImage(prepared.slices)
            return PreparedPrediction(image, target, axes, empty, None, where, notes, prepared)
        empty = (*empty, EMPTY_FIRST_STAGE) if empty is not None else None
        if case is not None and case.first_stage is not None:
            given = read_case_first_stage(case, self._first_stage.labels, volume.grid)
            cascade = CascadeInput(prepared.slices, label_slices(given, prepared, settings))
            return PreparedPrediction(cascade, target, axes, empty, None, where, notes, prepared)
        cascade = CascadeInput(prepared.slices, None)
        second = PreparedPrediction(cascade, target, axes, empty, None, where, notes, prepared)
        return replace(second, run_first_stage=partial(self._run_first_stage, volume, prepared, second))

    def _run_first_stage(
        self,
        volume: Volume,
        prepared: Prepared,
        second: PreparedPrediction,
        progress: Progress | None,
        note: Note,
    ) -> PreparedPrediction:
        """Return the prediction of the second stage with the label map that the first stage predicts for its image."""
        assert self._first_stage is not None
        found = self._first_stage_map(volume, progress, note)
        classes = found.with_data(self._first_stage.labels.to_classes(found.data, second.where))
        slices = label_slices(classes, prepared, self._saved.preprocessing)
        return replace(second, image=CascadeInput(prepared.slices, slices))

    def _first_stage_map(self, volume: Volume, progress: Progress | None, note: Note) -> Volume:
        """Return the label map that the first stage predicts for an image."""
        assert self._first_stage is not None
        # The second stage was trained on the same images and says what is unusual about this one.
        own = replace(self._first_stage.prepare(volume), notes=())
        return self._first_stage.run(own, progress=progress, note=note)

    def _crop_and_prepare(
        self, volume: Volume, whole: PreparedPrediction, progress: Progress | None, note: Note
    ) -> PreparedPrediction:
        """Return the prediction of the part of an image around labels that the first stage finds."""
        assert self._first_stage is not None
        assert self._saved.crop_around is not None
        found = self._first_stage_map(volume, progress, note)
        box = crop_box(found, self._saved.crop_around, self._first_stage.labels)
        if box is None:
            return replace(whole, is_background=True, run_first_stage=None)
        start, shape = [side.start for side in box], [side.stop - side.start for side in box]
        with self._exclusive:
            part = self._prepare_part(volume.cropped(start, shape), whole.where, None)
        target = part.target.placed_in(whole.target.volume, start)
        return replace(part, target=target, notes=whole.notes)

    def _body(self, volume: Volume) -> Box | None:
        """Return the box of the reoriented image around the body, or None unless the settings ask for it and it is CT."""
        settings = self._saved.preprocessing
        ct = [channel.method == "ct" for channel in settings.channels]
        if not (self._saved.predict.crop_to_body and all(ct) and volume.channels == len(ct)):
            return None
        codes = settings.axcodes(volume.grid)
        upright = reorient_array(volume.data, volume.grid.axcodes, codes)
        return body_box(upright, volume.grid.reoriented(codes))

    def _axes(self, target: LabelTarget) -> tuple[LinearWeights, ...]:
        """Return, for each of the axes Z, X and Y, which network voxels each target voxel is interpolated from."""
        thick = target.thick_axis if self._saved.predict.thick_slices == "nearest" else None
        between = [
            LinearWeights.from_axis_map(m, nearest=axis == thick) for axis, m in enumerate(target.maps)
        ]
        return tuple(between[axis] for axis in SLAB_FIRST)
