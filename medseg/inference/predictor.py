"""From an image file to a label map on the file's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.data.datasets.cases import Case, read_case_first_stage, read_case_image
from medseg.data.preprocessing.prepare import Box, LabelTarget, Prepared, label_slices, label_target, prepare
from medseg.errors import ConfigError, DataError, ModelError
from medseg.inference.instances.image_instances import image_instances
from medseg.inference.postprocess import component_groups
from medseg.inference.sliding.cascade_input import FOR_ALL_STAGES, CascadeInput, empty_in_both
from medseg.inference.sliding.engine import Engine, PreparedPrediction
from medseg.inference.sliding.labelling import LabelRule, label_rule
from medseg.inference.sliding.skip_empty import body_box, empty_test
from medseg.inference.sliding.slab import InMemoryImage, LazyImage
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.window_network import SLAB_FIRST, WindowNetwork
from medseg.inference.sliding.windows import SlidingWindow, window_slices
from medseg.io.files import decoded_bytes
from medseg.io.probability_files import writing_probabilities
from medseg.labels.components import KEEP_LARGEST_BYTES_PER_VOXEL, keep_largest_components
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import find_model_folder, first_stage_folder, load_model
from medseg.model_folder.settings import PredictSettings, SavedModel
from medseg.models.base import Model
from medseg.runtime.devices import checked_device
from medseg.runtime.memory import format_size, parse_size, used_memory
from medseg.runtime.progress import Progress
from medseg.volumes.orientation import reorient_array
from medseg.volumes.volume import Volume

Source = Volume | Case | str | Path | Sequence[str | Path]
_SMALL = 100 * 10**6  # bytes that are read whatever the budget


class Predictor:
    """A model, its preprocessing and its labels; call it with an image.

    Args:
        model: dense model, 2-D or 3-D, in evaluation or training mode.
        saved: settings of the model folder.
        labels: names and values of the classes, and the regions if the model predicts these.
        device: where to run; None takes CUDA where there is one.
        max_memory: bytes, or a size such as ``"6GB"``, that the process stays below; None takes a share of what is free.
        first_stage: predictor of the earlier stage of a cascade, run first on every image that comes without its label map.

    Raises:
        DataError: ``predict.keep_largest`` names an unknown label or region.
        ConfigError: there is no such device, or `max_memory` is no size.
        ModelError: the model counts on an earlier stage, and `first_stage` is not it.
    """

    def __init__(
        self,
        model: Model,
        saved: SavedModel,
        labels: Labels,
        *,
        device: torch.device | str | None = None,
        max_memory: int | str | None = None,
        first_stage: Predictor | None = None,
    ) -> None:
        found = len(first_stage.labels.foreground) if first_stage is not None else 0
        if found != saved.num_first_stage_labels:
            raise ModelError(
                f"{saved.name}: earlier stage: found {found} labels, expected {saved.num_first_stage_labels}. Give the stage that "
                "this one was trained behind."
            )
        self.saved = saved
        self.labels: Labels = labels
        self.first_stage: Predictor | None = first_stage
        self.max_memory = parse_size(max_memory, "max_memory") if isinstance(max_memory, str) else max_memory
        self._cleaned = component_groups(saved.predict, labels)
        self.device = checked_device(device)
        self.network = WindowNetwork(model, saved, self.device)
        rule = label_rule(labels)
        afterwards = KEEP_LARGEST_BYTES_PER_VOXEL if self._cleaned else 0
        self.engine = Engine(self.network, self._sliding(rule), rule, self.max_memory, afterwards)

    @property
    def settings(self) -> PredictSettings:
        """Overlap, mirroring, batch, precision, post-processing."""
        return self.saved.predict

    @property
    def model(self) -> Model:
        """The model that was given, on its device."""
        return self.network.model

    def with_settings(self, **changes: object) -> Predictor:
        """The same weights with other prediction settings, such as ``overlap=0.25``; see `load` for cascades."""
        saved = self.saved.replace(predict=self.settings.replace(**changes).to_plain())
        first_stage = (
            None if self.first_stage is None else self.first_stage.with_settings(**_for_all_stages(changes))
        )
        return Predictor(
            self.model,
            saved,
            self.labels,
            device=self.device,
            max_memory=self.max_memory,
            first_stage=first_stage,
        )

    def __call__(self, source: Source, *, progress: Progress | None = None) -> Volume:
        """Segment an image.

        Args:
            source: a volume, a file, a DICOM folder, one file per channel, or a case.
            progress: called with (done, total, "window").

        Returns:
            Label volume with the labels' values, on the image's own grid, ready to be written.

        Raises:
            DataError: the image cannot be read or does not fit the model.
            ConfigError: the memory allowed is too small for it.
        """
        return self.run(self.prepare(source), progress=progress)

    def instances(self, source: Source, *, progress: Progress | None = None) -> Instances:
        """Find the objects of an image with a 2-D instance model: in each slice, linked across slices.

        Args:
            source: as for a call.
            progress: called with (done, total, "slice").

        Returns:
            Instances of the volume `(X, Y, Z)` on the image's own grid; a picture has one slice.

        Raises:
            ModelError: the model finds no instances, as a U-Net.
            DataError: the image cannot be read or does not fit the model.
        """
        volume, where = self.read(source)
        return image_instances(self.network, self.saved, self.labels, volume, where=where, progress=progress)

    def prepare(self, source: Source) -> PreparedPrediction:
        """Read and prepare an image: the first half of a call, without the network."""
        with self.network.exclusive:
            return self._prepare(source)

    def _prepare(self, source: Source) -> PreparedPrediction:
        """`prepared`, whose memory is not to be taken for the network's."""
        volume, where = self.read(source)
        settings = self.saved.preprocessing
        prepared = prepare(volume, settings, where=where, box=self._body(volume))
        target = label_target(prepared, settings, self.engine.rule.values.dtype)
        empty = empty_test(settings, prepared.slices.lowest) if self.settings.skip_empty else None
        axes = self._axes(target)
        if self.first_stage is None:
            return PreparedPrediction(LazyImage(prepared.slices), target, axes, empty)
        empty = empty_in_both(empty) if empty is not None else None
        if isinstance(source, Case) and source.first_stage is not None:
            given = read_case_first_stage(source, self.first_stage.labels, volume.grid)
            image = CascadeInput(prepared.slices, label_slices(given, prepared, settings))
            return PreparedPrediction(image, target, axes, empty)
        first_stage_map = partial(self._run_first_stage, volume, where, prepared)
        return PreparedPrediction(CascadeInput(prepared.slices, None), target, axes, empty, first_stage_map)

    def _run_first_stage(
        self, volume: Volume, where: str, prepared: Prepared, progress: Progress | None
    ) -> CascadeInput:
        """The prepared image with the label map that the earlier stage predicts for it."""
        assert self.first_stage is not None
        found = self.first_stage(volume, progress=progress)
        classes = found.with_data(self.first_stage.labels.to_classes(found.data, where))
        return CascadeInput(prepared.slices, label_slices(classes, prepared, self.saved.preprocessing))

    def run(
        self,
        prepared: PreparedPrediction,
        *,
        progress: Progress | None = None,
        probabilities: str | Path | None = None,
    ) -> Volume:
        """Segment a prepared image: the second half of a call.

        Args:
            prepared: as `prepared` returns it; used once.
            progress: called with (done, total, "window").
            probabilities: ``.nii`` file that receives the probabilities of the classes or regions on the image's grid,
                `(X, Y, Z, K)`.
        """
        prepared = prepared.with_first_stage(progress)
        if probabilities is None:
            self.engine.run(prepared, progress)
        else:
            with writing_probabilities(
                probabilities, prepared.target.volume, self.background_probabilities
            ) as file:
                self.engine.run(prepared, progress, file)
        return self.post_processed(prepared.target.volume)

    @property
    def background_probabilities(self) -> dict[str, float]:
        """Name of each class or region that is predicted, and its probability where the model does not look."""
        return dict(zip(self.labels.output_names, self.engine.rule.background_probabilities, strict=True))

    def post_processed(self, labels: Volume) -> Volume:
        """A label volume after the post-processing that the settings ask for."""
        if not self._cleaned:
            return labels
        data = labels.data[0]
        for group in self._cleaned:
            data = keep_largest_components(data, group, together=True)
        return labels.with_data(data[None])

    def logits(self, image: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Logits `(k, X, Y, Z)` float32 of a prepared image `(c, X, Y, Z)`, on its grid.

        Behind an earlier stage, the image's last channel holds the classes of that stage.
        """
        slices = window_slices(
            InMemoryImage(image.movedim(-1, 1)), self.network, self.engine.sliding, progress=progress
        )
        return torch.cat([block.clone() for block in slices]).permute(3, 1, 2, 0)

    def _sliding(self, rule: LabelRule) -> SlidingWindow:
        settings = self.settings
        return SlidingWindow(
            self.network.window,
            overlap=settings.overlap,
            batch_size=settings.batch_size,
            blend=settings.blend,
            mirror_axes=tuple(SLAB_FIRST.index(axis) for axis in settings.mirror_axes),
            background=rule.background_logits,
        )

    def _body(self, volume: Volume) -> Box | None:
        """The box of the reoriented image to look at, if it is a CT and only the body is wanted."""
        settings = self.saved.preprocessing
        ct = [channel.method == "ct" for channel in settings.channels]
        if not (self.settings.crop_to_body and all(ct) and volume.channels == len(ct)):
            return None
        codes = settings.axcodes(volume.grid)
        upright = reorient_array(volume.data, volume.grid.axcodes, codes)
        return body_box(upright, volume.grid.reoriented(codes))

    def _axes(self, target: LabelTarget) -> tuple[LinearWeights, ...]:
        """Between which network voxels the target's lie, slab axis first."""
        thick = target.thick_axis if self.settings.thick_slices == "nearest" else None
        between = [
            LinearWeights.from_axis_map(m, nearest=axis == thick) for axis, m in enumerate(target.maps)
        ]
        return tuple(between[axis] for axis in SLAB_FIRST)

    def read(self, source: Source) -> tuple[Volume, str]:
        """The image of a source, and what to call it in messages."""
        if isinstance(source, Volume):
            return source, "image"
        if not isinstance(source, (Case, str, Path, Sequence)):
            raise DataError(
                f"image: found a {type(source).__name__}, expected a Volume, a path, a list of paths or a Case. An array "
                "needs its grid: medseg.Volume(array[None], medseg.Grid.of(array.shape, spacing))."
            )
        if isinstance(source, Case):
            case = source
        else:
            paths = (source,) if isinstance(source, (str, Path)) else source
            case = Case("image", tuple(map(Path, paths)), None, "image")
        self._check_size(case.images)
        return read_case_image(case), str(case.images[0])

    def _check_size(self, paths: Sequence[Path]) -> None:
        """Refuse a large image that alone exceeds the memory allowed, before it is read.

        Of a small one the plan tells later what would do.
        """
        if self.max_memory is None:
            return
        voxels = sum(decoded_bytes(path) for path in paths if path.is_file())
        needed = used_memory() + voxels
        if voxels > _SMALL and needed > self.max_memory:
            raise ConfigError(
                f"{paths[0]}: max_memory: found {format_size(self.max_memory)}, expected more than {format_size(needed, round_up=True)}, "
                "which its voxels alone take. Allow more."
            )

    def __repr__(self) -> str:
        window = "x".join(map(str, self.saved.window))
        precision = str(self.network.dtype).removeprefix("torch.")
        kind = "region(s)" if self.labels.regions else "classes"
        behind = f", behind {self.first_stage.saved.name}" if self.first_stage is not None else ""
        return (
            f"Predictor({self.saved.name}: {self.saved.model['name']}, {len(self.saved.channel_names)} channel(s) "
            f"-> {self.labels.num_outputs} {kind}, window {window}, {self.device}, {precision}{behind})"
        )


def load(
    folder: str | Path,
    *,
    device: str | None = None,
    max_memory: int | str | None = None,
    **settings: object,
) -> Predictor:
    """Load a model folder for prediction.

    Args:
        folder: ``RUN/model``, or a copy of it; RUN itself; or ``RUN/best``.
        device: such as ``"cpu"`` or ``"cuda:1"``; None takes CUDA where there is one.
        max_memory: bytes, or a size such as ``"6GB"``, that the process stays below; None takes a share of what is free.
        **settings: fields of `PredictSettings` that replace the stored ones, such as ``overlap=0.25``; a mapping such as
            ``link={"max_gap_slices": 2}`` joins the stored one. Earlier stages of a cascade keep their own, but for overlap,
            batch_size, precision and compile, which are for all.

    Raises:
        ModelError: the folder is missing, damaged or does not fit.
    """
    folder = find_model_folder(folder)
    model, saved, labels = load_model(folder)
    inner, first_stage = first_stage_folder(folder, saved), None
    if inner is not None:
        first_stage = load(inner, device=device, max_memory=max_memory, **_for_all_stages(settings))
    if settings:
        saved = saved.replace(predict=_changed(saved.predict, settings).to_plain())
    if not np.isfinite([float(p.detach().abs().max()) for p in model.parameters()]).all():
        raise ModelError(
            f"{folder}: found weights that are NaN or infinite. Train again or use an older checkpoint."
        )
    return Predictor(model, saved, labels, device=device, max_memory=max_memory, first_stage=first_stage)


def _changed(stored: PredictSettings, settings: Mapping[str, object]) -> PredictSettings:
    """Settings with some replaced; a mapping joins the one that is there, an empty one takes its place."""
    plain = stored.to_plain()

    def joined(key: str, value: object) -> object:
        there = plain.get(key)
        return (
            {**there, **value} if value and isinstance(value, Mapping) and isinstance(there, dict) else value
        )

    return stored.replace(**{key: joined(key, value) for key, value in settings.items()})


def _for_all_stages(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key in FOR_ALL_STAGES}
