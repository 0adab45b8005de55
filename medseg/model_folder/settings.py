"""Settings of prediction and the contents of a model folder's ``config.yaml``; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from medseg.config import Config
from medseg.data.datasets.cases import AbsentChannels
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.preprocessing.training_data import TrainingData
from medseg.data.settings import Axes
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError
from medseg.labels.label_table import Labels
from medseg.model_folder.card_settings import CardSettings
from medseg.model_folder.started_from import StartedFrom
from medseg.storage.formats import check_format
from medseg.yaml_dialect import read_yaml

FORMAT = 1
"""Version of the layout of a model folder."""

SHARED_BY_STAGES = ("overlap", "batch_size", "engine", "precision", "compile")
"""Prediction settings that do not depend on labels or axes, so that changing them changes all stages of a cascade."""


class LinkSettings(Config):
    """Settings for linking the instances of slices into instances of a volume.

    Attributes:
        min_iou: Minimum overlap (intersection over union) of instances in neighbouring slices that are linked.
        min_containment: Minimum share of the smaller instance inside the larger one from which they are linked whatever
            their IoU. Instances often end in caps that are much smaller than the slice before.
        max_gap_slices: Maximum number of slices in which an instance may be missing.
        max_fragment_slices: Maximum number of slices of a track that counts as a fragment of another track covering it; 0
            keeps all tracks.
        min_slices: Minimum number of slices of an instance; shorter ones are dropped.
    """

    min_iou: float = Field(0.2, gt=0, le=1)
    min_containment: float = Field(0.6, gt=0, le=1)
    max_gap_slices: int = Field(1, ge=0)
    max_fragment_slices: int = Field(2, ge=0)
    min_slices: int = Field(1, ge=1)


class PredictSettings(Config):
    """Settings for cutting a volume into windows and for post-processing its label map.

    Attributes:
        overlap: Fraction of a window that it shares with its neighbour.
        blend: Weights of the voxels of a window: ``gaussian``, largest at its centre, or ``constant``.
        mirror_axes: Array axes along which predictions of flipped copies are averaged; empty for none.
        batch_size: Number of windows per call of the network; ``auto`` is 1 on a processor, and as many as fit, up to 4, on a
            CUDA device.
        engine: Program that runs the network: PyTorch, or on a processor ONNX Runtime (extra ``onnx``) or OpenVINO (extra
            ``openvino``). The network is converted when prediction begins, which takes some seconds.
        precision: Number format of the network. ``auto`` is float16 for 3D networks on CUDA devices, bfloat16 for other
            networks where the hardware multiplies it natively, and float32 elsewhere. Where ``auto`` chose float16, an image
            whose logits are not finite is predicted again in bfloat16. ``float32`` is exact; ``tf32`` is float32 whose products
            keep 10 bits on CUDA devices. ``int8`` is the network that ``medseg quantize`` stored in the model folder, with
            ``engine=openvino``. Other engines than ``torch`` compute in float32 otherwise.
        thick_slices: Interpolation of logits across slices thicker than three times the pixels (on the file's or the
            network's grid): ``linear``, or ``nearest`` as in nnU-Net.
        skip_empty: Label windows that are constant, or only air in CT, as background without running the network.
        crop_to_body: Predict only a box around the body with a margin of 2 cm; for CT only. It moves the windows, so labels
            change a little; more with a model that has seen little air in training.
        compile: Compile the network first, which pays off for many or large images. The code is kept for later runs.
        calibrate: Divide logits by the temperatures of the model folder, if it has any, before they become probabilities.
            Label maps do not depend on it.
        min_instance_score: Minimum score of an instance, where instances are predicted.
        link: Linking of the instances of slices into those of a volume.
        keep_largest_foreground: Keep only the largest connected component of all labels together.
        keep_largest: Labels or regions to reduce to their largest connected component, in this order. A region is
            the union of its labels.
        min_component_ml: Volume in ml by label or region; connected components that are not larger become background, after the
            largest components have been chosen.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    mirror_axes: Axes = ()
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    engine: Literal["torch", "onnx", "openvino"] = "torch"
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16", "int8"] = "auto"
    thick_slices: Literal["linear", "nearest"] = "linear"
    skip_empty: bool = True
    crop_to_body: bool = False
    compile: bool = False
    calibrate: bool = True
    min_instance_score: float = Field(0.5, ge=0, le=1)
    link: LinkSettings = LinkSettings()
    keep_largest_foreground: bool = False
    keep_largest: tuple[str, ...] = ()
    min_component_ml: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        """Refuse number formats that the engine does not have."""
        formats = {"onnx": ("auto", "float32"), "openvino": ("auto", "float32", "int8")}.get(self.engine)
        if formats is not None and self.precision not in formats:
            raise ValueError(
                f"precision: found {self.precision}, expected one of {', '.join(formats)} with engine={self.engine}"
            )
        if formats is None and self.precision == "int8":
            raise ValueError("precision: found int8 with engine=torch, expected engine=openvino")
        if formats is not None and self.compile:
            raise ValueError(f"compile: found true, expected false with engine={self.engine}")
        return self

    def merged(self, changes: Mapping[str, object]) -> PredictSettings:
        """Return the settings with some replaced.

        Args:
            changes: New values by field. A mapping joins the stored one; an empty mapping replaces it.

        Returns:
            New, validated settings.

        Raises:
            ConfigError: A field is unknown or its value does not fit.

        Examples:
            >>> settings = PredictSettings(overlap=0.25, link=LinkSettings(min_iou=0.4))
            >>> merged = settings.merged({"batch_size": 2, "link": {"min_slices": 3}})
            >>> merged.overlap, merged.batch_size, merged.link.min_iou, merged.link.min_slices
            (0.25, 2, 0.4, 3)
        """
        stored = self.to_plain()

        def joined(key: str, value: object) -> object:
            old = stored.get(key)
            if value and isinstance(value, Mapping) and isinstance(old, dict):
                return {**old, **value}
            return value

        return self.replace(**{key: joined(key, value) for key, value in changes.items()})


class Calibration(Config):
    """Temperatures by which logits are divided before they become probabilities (Guo et al. 2017).

    Attributes:
        temperatures: One temperature for all outputs, or one per class or region, in their order.
        cases: Number of held-out cases that they were fitted on.
    """

    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    cases: int = Field(ge=1)


class Part(Config):
    """One network of a model folder whose networks find different labels in the same image.

    Attributes:
        name: Name of the part, such as the data set that it was trained on.
        labels: Names of the labels of its outputs after the background, in order.
        normalization: Normalisation of the image's channel for this network.
    """

    name: str
    labels: tuple[str, ...] = Field(min_length=1)
    normalization: Normalization


class CropSettings(Config):
    """Settings for cropping an image around labels that the first stage finds in it.

    Attributes:
        labels: Names of labels of the first stage.
        margin_mm: Margin in mm around the box of these labels; less than a voxel is left out.
    """

    labels: tuple[str, ...] = Field(min_length=1)
    margin_mm: float = Field(20.0, ge=0)


class SavedModel(Config):
    """The ``config.yaml`` of a model folder: all that prediction needs besides labels and weights.

    Attributes:
        format: Version of the folder's layout.
        medseg: Version of medseg that wrote the folder.
        name: Name of the experiment.
        model: Registry name and options of the network.
        channel_names: One name per input channel, in order.
        preprocessing: Resolved preprocessing, with the intensity statistics of the training data.
        window: Voxels per array axis; 1 along the slice axis of a 2D model.
        slice_axis: Array axis that is perpendicular to the slices of a 2D model.
        members: Number of networks in the folder; the logits of several are averaged, unless they are `parts`.
        num_first_stage_labels: Number of foreground labels of the first stage of a cascade, whose model folder is in
            ``first_stage/``. Its label map becomes that many additional input channels. 0 for a model that is not the
            second stage of a cascade.
        crop_around: How the image is cropped around labels of a first stage, whose model folder is in ``first_stage/``. Outside
            of the box everything is background, and nothing is predicted if the first stage finds none of these labels. null for
            models that see the whole image.
        parts: The networks of a folder whose networks find different labels, such as organs and ribs. Their label maps are
            combined: where several find a label, that of the last one counts. Empty for other folders.
        slices: How slices become images of a 2D model.
        predict: Prediction settings.
        trained_on: Counts and figures for the model card.
        training_data: Ranges of the training images, with which new images are compared; null if they were not recorded.
        calibration: Temperatures that a cross-validation fitted; null if there are none.
        absent_channels: ``zeros`` if cases without a file for some of their channels may be predicted, because the training had such
            cases; ``refuse`` otherwise.
        started_from: The trained weights that the training started from; null for fresh ones.
        card: What the authors state in the model card.
    """

    format: Literal[1] = 1
    medseg: str
    name: str
    model: dict[str, Any]
    channel_names: tuple[str, ...]
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    slice_axis: Literal[0, 1, 2] = 2
    members: int = Field(1, ge=1)
    num_first_stage_labels: int = Field(0, ge=0)
    crop_around: CropSettings | None = None
    parts: tuple[Part, ...] = ()
    slices: SliceSettings = SliceSettings()
    predict: PredictSettings = PredictSettings()
    trained_on: dict[str, Any] = Field(default_factory=dict)
    training_data: TrainingData | None = None
    card: CardSettings = CardSettings()
    calibration: Calibration | None = None
    absent_channels: AbsentChannels = "refuse"
    started_from: StartedFrom | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        """Refuse parts that are not one network each, see several channels, or share labels."""
        if self.preprocessing.resample_raw is not None and self.num_first_stage_labels:
            raise ValueError("preprocessing.resample_raw: found the second stage of a cascade, expected null")
        if self.crop_around is not None and self.num_first_stage_labels:
            raise ValueError("crop_around: found the second stage of a cascade, expected null")
        if not self.parts:
            return self
        if len(self.parts) != self.members or len(self.channel_names) != 1 or self.num_first_stage_labels:
            raise ValueError(
                f"parts: found {len(self.parts)} for {self.members} networks and {len(self.channel_names)} channels, expected "
                "one per network, one channel and no first stage"
            )
        names = [label for part in self.parts for label in part.labels]
        if len(set(names)) < len(names):
            raise ValueError("parts: found the same label in several parts, expected each label once")
        return self

    @property
    def has_first_stage(self) -> bool:
        """Whether the folder holds the model folder of a first stage."""
        return self.num_first_stage_labels > 0 or self.crop_around is not None

    @property
    def seen_preprocessing(self) -> Preprocessing:
        """The preprocessing of the channels that the networks see: with parts, one for each different normalisation."""
        if not self.parts:
            return self.preprocessing
        return self.preprocessing.model_copy(update={"channels": self._part_normalizations()})

    @property
    def part_channels(self) -> tuple[int, ...]:
        """The channel of the prepared image that each part sees."""
        seen = self._part_normalizations()
        return tuple(seen.index(part.normalization) for part in self.parts)

    def _part_normalizations(self) -> tuple[Normalization, ...]:
        found: list[Normalization] = []
        for part in self.parts:
            if part.normalization not in found:
                found.append(part.normalization)
        return tuple(found)

    def outputs_of(self, labels: Labels, member: int = 0) -> int:
        """Return the number of outputs of one network of the folder.

        Args:
            labels: Labels of the folder.
            member: Number of the network, from 0.

        Returns:
            Number of outputs, background included.
        """
        return 1 + len(self.parts[member].labels) if self.parts else labels.num_outputs

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures of the outputs, as in `Calibration`; empty if none were fitted or ``predict.calibrate`` is false."""
        if self.calibration is None or not self.predict.calibrate:
            return ()
        return self.calibration.temperatures

    @classmethod
    def load(cls, path: str | Path, *overrides: str) -> Self:
        """Read a ``config.yaml``.

        Args:
            path: The file.
            *overrides: Values to change, as ``key=value``.

        Returns:
            The validated contents of the file, with the overrides applied in order.

        Raises:
            ModelError: The file has the format of another version of medseg.
            ConfigError: The file is missing, is not YAML, or holds values that do not fit.
        """
        check_format(read_yaml(Path(path)).get("format"), FORMAT, path, "model folder", error=ModelError)
        return super().load(path, *overrides)

    @property
    def in_channels(self) -> int:
        """The number of channels that the network sees."""
        return self.slices.num_channels(len(self.channel_names)) + self.num_first_stage_labels

    @property
    def slice_view(self) -> SliceView:
        """The view of a 2D model on prepared volumes."""
        return SliceView.from_preprocessing(self.slices, self.slice_axis, self.preprocessing)

    def check_first_stage(self, found: int, where: str | Path) -> None:
        """Raise `ModelError` unless the first stage has as many labels as this model expects.

        Args:
            found: Number of foreground labels of the first stage; 0 if there is none.
            where: What `found` was read from, for the message.
        """
        expected = self.num_first_stage_labels
        if self.crop_around is not None:
            if not found:
                raise ModelError(
                    f"{where}: first stage: found none, expected a model of {', '.join(self.crop_around.labels)}, around which images "
                    f"are cropped for {self.name}. Import it again."
                )
            return
        if found != expected:
            raise ModelError(
                f"{where}: first stage: found {_labels(found)}, expected {_labels(expected)} (num_first_stage_labels of "
                f"{self.name}). Give the model folder of the first stage that this model was trained with."
            )


def _labels(count: int) -> str:
    return f"{count} foreground labels" if count else "none"
