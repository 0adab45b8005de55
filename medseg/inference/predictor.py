"""Predict the label map of an image on the image's own grid.

`load` reads a model folder and returns a `Predictor`. Calling it reads and prepares the image (`Predictor.prepare`), runs
the network window by window, brings the logits back onto the image's grid and converts them to labels (`Engine`), and
post-processes the label map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from medseg.data.datasets.cases import Case
from medseg.errors import ConfigError, ModelError, warn_once
from medseg.inference.instances.image_instances import (
    check_instance_settings,
    image_instances,
    require_instance_model,
)
from medseg.inference.instances.volume_instances import centre_engine, volume_instances
from medseg.inference.part_labels import model_rule
from medseg.inference.postprocess import component_groups, has_postprocessing, post_process
from medseg.inference.preparation.image_preparation import ImagePreparation
from medseg.inference.preparation.image_source import Source, read_source
from medseg.inference.quality.assessment import AssessedLabels, Assessment
from medseg.inference.quality.quality_model import QualityModel
from medseg.inference.sliding.engine import Engine, SideOutputs
from medseg.inference.sliding.labelling import LabelRule
from medseg.inference.sliding.prepared_prediction import Note, PreparedPrediction
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.window_network import SLAB_FIRST, WindowNetwork
from medseg.inference.sliding.windows import SlidingWindow, window_slices
from medseg.inference.uncertainty.case_evidence import EvidenceSums
from medseg.inference.uncertainty.logit_sample import LogitSampler
from medseg.io.probability_files import ProbabilityFile, writing_probabilities, writing_uncertainty
from medseg.labels.components import KEEP_LARGEST_BYTES_PER_VOXEL
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import find_model_folder, first_stage_folder, load_model
from medseg.model_folder.hub import is_hub_name, pull_model
from medseg.model_folder.licences import state_licences
from medseg.model_folder.settings import SHARED_BY_STAGES, PredictSettings, SavedModel
from medseg.models.base import Model
from medseg.models.unet.instance_unet import InstanceUNet
from medseg.runtime.devices import checked_device
from medseg.runtime.memory import parse_size
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume

_BATCH_ON_DEVICE = 4  # windows per call; on an H200, larger batches gain little


class Predictor:
    """A model with its preprocessing and labels; call it with an image to get a label map.

    Args:
        model: The network, 2D or 3D, in evaluation or training mode.
        saved: Settings of its model folder.
        labels: Labels of its classes, and the regions if it predicts these.
        device: Device to run on; None for CUDA if available.
        max_memory: Maximum resident memory of the process in bytes, or a size such as ``"6GB"``; None for a share of what
            is free.
        max_device_memory: Maximum memory allocated on a CUDA device, in bytes or as a size; None for a share of what is
            free.
        first_stage: Predictor of the first stage of a cascade, which runs first on every image that comes without a label
            map of the first stage.
        quality: Quality model, fitted to out-of-fold predictions; None without a cross-validation.

    Attributes:
        saved: Settings of the model folder.
        labels: Labels of the classes.
        first_stage: Predictor of the first stage of a cascade, or None.
        quality: Quality model, or None.
        max_memory: Maximum resident memory of the process in bytes, or None.
        max_device_memory: Maximum memory allocated on a CUDA device in bytes, or None.
        device: Device that the network runs on.
        network: The network as windows see it: on its device, in its precision and memory format.
        engine: Runs prepared images through the network, within the memory that is allowed.

    Raises:
        DataError: ``predict.keep_largest`` names an unknown label or region.
        ConfigError: The device does not exist, or `max_memory` is not a size.
        ModelError: `first_stage` does not fit the model.

    Examples:
        >>> import numpy as np
        >>> import medseg
        >>> saved = SavedModel.parse({
        ...     "medseg": "0.1", "name": "liver", "model": {"name": "unet_3d", "channels": [4, 8]},
        ...     "channel_names": ["CT"], "preprocessing": {"channels": [{"method": "zscore"}]}, "window": [8, 8, 8],
        ... })
        >>> model = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        >>> predictor = Predictor(model, saved, medseg.Labels.from_names({"background": 0, "liver": 5}), device="cpu")
        >>> image = np.random.default_rng(0).normal(size=(1, 12, 10, 9)).astype(np.float32)
        >>> labels = predictor(medseg.Volume(image, medseg.Grid.from_spacing((12, 10, 9), (1, 1, 2))))
        >>> labels.data.shape, labels.grid.spacing
        ((1, 12, 10, 9), (1.0, 1.0, 2.0))
    """

    def __init__(
        self,
        model: Model,
        saved: SavedModel,
        labels: Labels,
        *,
        device: torch.device | str | None = None,
        max_memory: int | str | None = None,
        max_device_memory: int | str | None = None,
        first_stage: Predictor | None = None,
        quality: QualityModel | None = None,
    ) -> None:
        saved.check_first_stage(0 if first_stage is None else len(first_stage.labels.foreground), saved.name)
        self.saved = saved
        self.labels: Labels = labels
        self.first_stage: Predictor | None = first_stage
        self.quality: QualityModel | None = quality
        self.max_memory = _bytes(max_memory, "max_memory")
        self.max_device_memory = _bytes(max_device_memory, "max_device_memory")
        component_groups(saved.predict, labels)  # refuses unknown names
        self.device = checked_device(device)
        self.network = WindowNetwork(model, saved, self.device)
        rule = model_rule(saved, labels, _temperatures(saved, labels))
        afterwards = KEEP_LARGEST_BYTES_PER_VOXEL if has_postprocessing(saved.predict) else 0
        self.engine = Engine(
            self.network, self._sliding(rule), rule, self.max_memory, self.max_device_memory, afterwards
        )
        self._preparation = ImagePreparation(saved, rule.values.dtype, first_stage, self.network.exclusive)

    @property
    def settings(self) -> PredictSettings:
        """The prediction settings: overlap, mirroring, batch size, precision, post-processing."""
        return self.saved.predict

    @property
    def model(self) -> Model:
        """The network, on its device."""
        return self.network.model

    def with_settings(self, **changes: object) -> Predictor:
        """Return a predictor with the same weights and other prediction settings.

        Args:
            **changes: Settings to replace, such as ``overlap=0.25``, as for `load`.

        Returns:
            A new predictor; this one is not changed.

        Raises:
            ConfigError: A setting is unknown or its value does not fit.
        """
        saved = self.saved.replace(predict=self.settings.merged(changes).to_plain())
        first_stage = self.first_stage
        if first_stage is not None:
            first_stage = first_stage.with_settings(**_shared_by_stages(changes))
        return Predictor(
            self.model,
            saved,
            self.labels,
            device=self.device,
            max_memory=self.max_memory,
            max_device_memory=self.max_device_memory,
            first_stage=first_stage,
            quality=self.quality,
        )

    def __call__(self, source: Source, *, progress: Progress | None = None) -> Volume:
        """Segment an image.

        Args:
            source: A volume, a file, a DICOM folder, one file per channel, or a case.
            progress: Called with (done, total, "window").

        Returns:
            The label map `(1, X, Y, Z)` with the labels' values, on the image's own grid, ready to be written.

        Raises:
            DataError: The image cannot be read or does not fit the model.
            ConfigError: `max_memory` is too small for the image.
        """
        return self.run(self.prepare(source), progress=progress)

    def instances(self, source: Source, *, progress: Progress | None = None) -> Instances:
        """Find the instances in an image.

        A 3D instance model (`instance_unet_3d`) finds them in the volume, window by window. A 2D one finds them in every slice,
        and they are linked across slices.

        Args:
            source: A volume, a file, a DICOM folder, one file per channel, or a case.
            progress: Called with (done, total, "window"), or with "slice" for a 2D model.

        Returns:
            Instances of the volume `(X, Y, Z)` on the image's own grid; a natural image has one slice.

        Raises:
            ModelError: The model does not find instances; a U-Net does not, for example.
            ConfigError: The settings name another engine than PyTorch.
            DataError: The image cannot be read or does not fit the model.
        """
        return self.instances_in(*self.read(source), progress=progress)

    def instances_in(
        self,
        volume: Volume,
        where: str = "image",
        *,
        progress: Progress | None = None,
        note: Note = warn_once,
    ) -> Instances:
        """Find the instances in an image that `read` returned; see `instances`.

        Args:
            volume: Image `(C, X, Y, Z)` as read from its file.
            where: File or case, for messages.
            progress: As for `instances`.
            note: Called with each sentence about the image or its prediction, see `run`.

        Returns:
            As for `instances`.

        Raises:
            ModelError: The model does not find instances.
            ConfigError: The settings name another engine than PyTorch, or `max_memory` is too small for the image.
            DataError: The image does not fit the model.
        """
        self.require_instances()
        model = self.model
        if not isinstance(model, InstanceUNet) or model.spatial_dims == 2:
            return image_instances(
                self.network, self.saved, self.labels, volume, where=where, progress=progress
            )
        with self.network.exclusive:
            prepared = self._preparation.prepared(volume, where)
        for sentence in prepared.notes:
            note(sentence)
        engine = centre_engine(self.engine, model, self.saved)
        prepared = prepared.with_first_stage(progress, note)
        least = self.settings.min_instance_score
        return volume_instances(engine, model, prepared, min_score=least, progress=progress, note=note)

    def require_instances(self) -> None:
        """Raise unless the model finds instances, and can do so with these settings.

        Raises:
            ModelError: The model does not find instances.
            ConfigError: The settings name another engine than PyTorch, or limit the memory of a 2D model.
        """
        require_instance_model(self.model, self.saved, self.labels)
        limits = {"max_memory": self.max_memory, "max_device_memory": self.max_device_memory}
        check_instance_settings(self.model, self.saved, limits)

    def prepare(
        self, source: Source, *, on_image: Callable[[Volume], None] | None = None
    ) -> PreparedPrediction:
        """Read and prepare an image, which is the first half of a call and does not run the network.

        Args:
            source: A volume, a file, a DICOM folder, one file per channel, or a case.
            on_image: Called with the image as it was read; None for nothing.

        Returns:
            The prepared image `(c, Z, X, Y)`, and the label map on the grid of the file, which `run` fills. The first
            stage of a cascade has not been run yet.

        Raises:
            DataError: The image cannot be read or does not fit the model.
            ConfigError: `max_memory` is too small for the image's voxels.
        """
        with self.network.exclusive:
            volume, where = self.read(source)
            if on_image is not None:
                on_image(volume)
            return self._preparation.prepared(volume, where, source if isinstance(source, Case) else None)

    def run(
        self,
        prepared: PreparedPrediction,
        *,
        progress: Progress | None = None,
        probabilities: str | Path | None = None,
        uncertainty: str | Path | None = None,
        evidence: EvidenceSums | None = None,
        sampler: LogitSampler | None = None,
        note: Note = warn_once,
    ) -> Volume:
        """Segment a prepared image, which is the second half of a call.

        Args:
            prepared: What `prepare` returned; it can be used once.
            progress: Called with (done, total, "window").
            probabilities: ``.nii`` file to write with the probabilities of the classes or regions on the image's grid,
                `(X, Y, Z, K)`; None for none. They are calibrated if the model has temperatures.
            uncertainty: ``.nii`` file to write with the entropy of these probabilities, `(X, Y, Z)` between 0 and 1; of
                regions, with the largest entropy of any of them. None for none.
            evidence: Filled with sums over the probabilities, see `medseg.inference.uncertainty.case_evidence`; None for none.
            sampler: Samples the logits of a case, see `medseg.inference.uncertainty.logit_sample`; None for none.
            note: Called with each sentence about the image or its prediction: how it differs from the training images, or
                that it had to be predicted in another way than planned, such as in another precision.

        Returns:
            The label map, as from a call.

        Raises:
            ConfigError: `max_memory` is too small for the image.
            ResourceError: The memory did not suffice, although the plan fitted.
            ModelError: The network returned NaN or infinity.
        """
        for sentence in prepared.notes:
            note(sentence)
        prepared = prepared.with_first_stage(progress, note)
        like, observers = prepared.target.volume, [one for one in (evidence, sampler) if one is not None]
        with contextlib.ExitStack() as stack:
            file = entropy = None
            if probabilities is not None:
                file = stack.enter_context(self.writing_probabilities(probabilities, like))
            if uncertainty is not None:
                entropy = stack.enter_context(writing_uncertainty(uncertainty, like))
            self.engine.run(prepared, progress, SideOutputs(file, entropy, tuple(observers)), note)
        return self.post_processed(prepared.target.volume)

    def assess(self, source: Source, *, progress: Progress | None = None) -> AssessedLabels:
        """Segment an image and estimate how good the result is.

        Args:
            source: A volume, a file, a DICOM folder, one file per channel, or a case.
            progress: Called with (done, total, "window").

        Returns:
            The label map as from a call, and its quality: expected Dice and volume with intervals, and reasons to review it. A
            model folder without a quality model has flags from the training distribution only.

        Raises:
            DataError: The image cannot be read or does not fit the model.
            ConfigError: `max_memory` is too small for the image.
        """
        assessment = self.assessment()
        evidence = self.evidence_sums() if self.quality is not None else None
        labels = self.run(self.prepare(source, on_image=assessment), progress=progress, evidence=evidence)
        return AssessedLabels(
            labels, assessment.finish(labels, None if evidence is None else evidence.evidence())
        )

    def evidence_sums(self) -> EvidenceSums:
        """Return an object that adds up the evidence of a case, for `run`."""
        return EvidenceSums(self.labels, self.engine.rule)

    def assessment(self, on_image: Callable[[Volume], None] | None = None) -> Assessment:
        """Return the assessment of one case, to be called with its image and then with its prediction.

        Args:
            on_image: Called with the image, too; None for nothing.

        Returns:
            The assessment, as `prepare` takes it for `on_image`.
        """
        return Assessment(self.saved, self.labels, self.quality, on_image)

    def logit_sampler(self, case: Case) -> LogitSampler:
        """Return an object that records a sample of the logits of a case with a reference, for `run`.

        Args:
            case: The case.

        Returns:
            A sampler that reads the reference when the prediction begins.
        """
        return LogitSampler(case, self.saved.preprocessing, self.labels)

    def writing_probabilities(
        self, path: str | Path, like: Volume, *, calibrated: bool | None = None
    ) -> AbstractContextManager[ProbabilityFile]:
        """Return the context of a new file of probabilities, see `medseg.io.probability_files.writing_probabilities`.

        Args:
            path: Name that ends with ``.nii``.
            like: Volume with the grid and geometry fields of the file.
            calibrated: Whether the file says that its probabilities are calibrated; None if they are those of this model.

        Returns:
            A context with the open file.
        """
        rule = self.engine.rule
        outside = dict(zip(self.labels.output_names, rule.background_probabilities, strict=True))
        own = bool(self.saved.temperatures)
        return writing_probabilities(
            path, like, outside, calibrated=own if calibrated is None else calibrated
        )

    def post_processed(self, labels: Volume) -> Volume:
        """Return a label map after the post-processing that the settings ask for.

        Args:
            labels: A label map `(1, X, Y, Z)` with the labels' values; not changed.

        Returns:
            A label map on the same grid; `labels` itself if the settings ask for no post-processing.
        """
        return post_process(labels, self.settings, self.labels)

    def logits(self, image: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Return the logits of a prepared image on its own grid.

        Args:
            image: Prepared image `(c, X, Y, Z)`. In the second stage of a cascade, the last channel holds the class
                indices of the first stage.
            progress: Called with (done, total, "window").

        Returns:
            Logits `(k, X, Y, Z)` float32.
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
            batch_size=_batch_size(settings, self.device),
            blend=settings.blend,
            mirror_axes=tuple(SLAB_FIRST.index(axis) for axis in settings.mirror_axes),
            background=rule.background_logits,
        )

    def read(self, source: Source) -> tuple[Volume, str]:
        """Read the image of a source.

        Args:
            source: A volume, a file, a DICOM folder, one file per channel (None for an absent one), or a case.

        Returns:
            The image, and its name for messages.

        Raises:
            DataError: The image cannot be read, or has another number of channels than the model.
            ConfigError: `max_memory` is too small to read it.
        """
        return read_source(source, self.saved, self.max_memory)

    def __repr__(self) -> str:
        window = "x".join(map(str, self.saved.window))
        precision = str(self.network.dtype).removeprefix("torch.")
        kind = "region(s)" if self.labels.regions else "classes"
        after = f", after {self.first_stage.saved.name}" if self.first_stage is not None else ""
        return (
            f"Predictor({self.saved.name}: {self.saved.model['name']}, {len(self.saved.channel_names)} channel(s) "
            f"-> {self.labels.num_outputs} {kind}, window {window}, {self.device}, {precision}{after})"
        )


def _temperatures(saved: SavedModel, labels: Labels) -> tuple[float, ...]:
    """Return the temperatures of a model, or raise `ModelError` unless there are none, one, or one per output."""
    found = saved.temperatures
    if len(found) not in (0, 1, labels.num_outputs):
        raise ModelError(
            f"{saved.name}: calibration: found {len(found)} temperatures, expected 1 or {labels.num_outputs}. Copy the model "
            "folder again, or predict with calibrate=false."
        )
    return found


def load(
    folder: str | Path,
    /,
    *,
    device: str | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    **settings: object,
) -> Predictor:
    """Load a model folder for prediction.

    Args:
        folder: ``RUN/model`` or a copy of it, RUN itself, or ``RUN/best``; or ``hf://OWNER/NAME`` for a model on the Hugging
            Face hub, which is downloaded (extra ``medseg[hub]``).
        device: Device such as ``"cpu"`` or ``"cuda:1"``; None for CUDA if available.
        max_memory: Maximum resident memory of the process in bytes, or a size such as ``"6GB"``; None for half of what is
            free.
        max_device_memory: Maximum memory allocated on a CUDA device, in bytes or as a size; None for nine tenths of what
            is free.
        **settings: Fields of `PredictSettings` that replace the stored ones, such as ``overlap=0.25``; a mapping such as
            ``link={"max_gap_slices": 2}`` joins the stored one. In a cascade, overlap, batch_size, precision and compile
            change both stages, and all others only the second one.

    Returns:
        A predictor: call it with an image to get a label map.

    Raises:
        ModelError: The folder is missing or damaged, or its weights are not finite.
        ConfigError: A setting is unknown or its value does not fit.

    Examples:
        >>> import tempfile
        >>> import medseg
        >>> from medseg.model_folder.folder import save_model
        >>> saved = SavedModel.parse({
        ...     "medseg": "0.1", "name": "liver", "model": {"name": "unet_3d", "channels": [4, 8]},
        ...     "channel_names": ["CT"], "preprocessing": {"channels": [{"method": "zscore"}]}, "window": [8, 8, 8],
        ... })
        >>> model = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model", model, saved, medseg.Labels.from_names({"background": 0, "liver": 5}))
        ...     medseg.load(f"{folder}/model", device="cpu", precision="float32", overlap=0.25)
        Predictor(liver: unet_3d, 1 channel(s) -> 2 classes, window 8x8x8, cpu, float32)
    """
    folder = pull_model(str(folder)) if is_hub_name(folder) else find_model_folder(folder)
    model, saved, labels = load_model(folder)
    state_licences(saved, folder)
    inner, first_stage = first_stage_folder(folder, saved), None
    if inner is not None:
        first_stage = load(
            inner,
            device=device,
            max_memory=max_memory,
            max_device_memory=max_device_memory,
            **_shared_by_stages(settings),
        )
    if settings:
        saved = saved.replace(predict=saved.predict.merged(settings).to_plain())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise ModelError(f"{folder}: found weights that are NaN or infinite. Train again, or use RUN/best.")
    return Predictor(
        model,
        saved,
        labels,
        device=device,
        max_memory=max_memory,
        max_device_memory=max_device_memory,
        first_stage=first_stage,
        quality=QualityModel.from_folder(folder),
    )


def _bytes(size: int | str | None, setting: str) -> int | None:
    """Return a size as a number of bytes, or raise `ConfigError` unless it is positive."""
    if isinstance(size, str):
        return parse_size(size, setting)
    if size is not None and size <= 0:
        raise ConfigError(
            f"{setting}: found {size} bytes, expected more than 0, or None for a share of what is free. Correct it."
        )
    return size


def _batch_size(settings: PredictSettings, device: torch.device) -> int:
    """Return the number of windows per call of the network, which the memory plan may reduce."""
    if settings.batch_size != "auto":
        return settings.batch_size
    return _BATCH_ON_DEVICE if device.type == "cuda" else 1


def _shared_by_stages(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that change all stages of a cascade."""
    return {key: value for key, value in settings.items() if key in SHARED_BY_STAGES}
