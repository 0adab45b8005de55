"""The typed configuration of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_serializer, model_validator

from medseg.config import Config
from medseg.data.settings import (
    Augmentation,
    CascadeSettings,
    DataSettings,
    PatchSettings,
    PreprocessSettings,
)
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import ConfigError
from medseg.evaluation.label_maps.metric_catalog import checked_extra
from medseg.fine_tuning.settings import AdaptSettings
from medseg.model_folder.card_settings import CardSettings
from medseg.model_folder.settings import PredictSettings
from medseg.models.catalog import MODELS, ModelOptions, parse_options
from medseg.models.pretrained.config import is_published_name
from medseg.train.settings import TrainSettings

if TYPE_CHECKING:
    from medseg.evaluation.label_maps.metric_options import MetricOptions
    from medseg.models.base import Model

DEFAULT_MODEL = "unet_3d"


class ModelChoice(Config):
    """The model of an experiment: its registered name, its first weights and, as further keys, all options of that model.

    Attributes:
        name: Registered name of the model; ``medseg models`` lists them.
        weights: Trained weights to start from; null for fresh ones. A model folder, a run, a ``.safetensors`` file, a checkpoint
            of nnU-Net v2, or a file of MONAI's state dicts; what is taken is matched by the names of labels and channels. Models
            with published weights also take a file of Detectron2 or ViT-Adapter, a name of torchvision or of timm, or
            ``hub:ORGANISATION/NAME@COMMIT``.
        adapt: How the weights of a trained model are fitted to this one.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = DEFAULT_MODEL
    weights: str | None = Field(None, min_length=1)
    adapt: AdaptSettings = AdaptSettings()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Check the options and fill in their defaults, so that two spellings of one model compare equal."""
        name = values.get("name", DEFAULT_MODEL) if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        chosen = {key: value for key, value in values.items() if key not in cls.model_fields}
        try:
            options = parse_options(name, chosen, source=name).to_plain()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        options.pop("weights", None)
        return {**options, **own, "name": name}

    def options(self) -> ModelOptions:
        """Return the typed options of the model, with the published weights if it can have some."""
        published = {"weights": self.weights} if self.has_published_weights else {}
        return parse_options(self.name, {**(self.model_extra or {}), **published}, source=self.name)

    @property
    def has_published_weights(self) -> bool:
        """Whether the model takes published weights by their names."""
        return "weights" in MODELS.get(self.name).options.model_fields

    @property
    def trained_source(self) -> Path | None:
        """The model folder or file whose weights are matched by names; None for fresh weights and those of a backbone.

        A whole published model that is given by its name is looked up in the local cache, or downloaded if that is allowed.
        """
        if self.weights is None:
            return None
        from medseg.fine_tuning.weight_source import is_trained_model
        from medseg.models.pretrained.zoos.read_published import find_published_file

        path = Path(self.weights)
        if not self.has_published_weights or is_trained_model(path):
            return path
        return find_published_file(self.weights, download=bool((self.model_extra or {}).get("download")))

    @property
    def published_name(self) -> str | None:
        """The name of torchvision or the hub under which the weights are published; None for a path."""
        return self.weights if self.weights is not None and is_published_name(self.weights) else None

    @property
    def spatial_dims(self) -> int:
        """The number of spatial dimensions, 2 or 3."""
        return MODELS.get(self.name).dims

    def to_shared(self) -> dict[str, Any]:
        """Return plain values for a folder that is shared: of published weights in a file, only the name."""
        plain = self.options().to_plain()
        weights = plain.get("weights")
        if weights and not weights.startswith("hub:"):
            plain["weights"] = Path(weights).name  # names of torchvision and timm have no folder
        return {"name": self.name, **plain}

    def with_fresh_weights(self) -> ModelChoice:
        """Return the same architecture without first weights."""
        if self.weights is None:
            return self
        return type(self).parse({**self.to_plain(), "weights": None, "adapt": {}})

    def build(self, in_channels: int, num_classes: int) -> Model:
        """Build the model with fresh weights, or with published weights if `weights` names some.

        Args:
            in_channels: Number of input channels.
            num_classes: Number of output channels.

        Returns:
            The model.
        """
        return self.options().build(
            in_channels=in_channels, num_classes=num_classes, spatial_dims=self.spatial_dims
        )

    @model_serializer
    def _resolved(self) -> dict[str, Any]:
        options = self.options().to_plain() | {"weights": self.weights}
        return {"name": self.name, "weights": None, "adapt": self.adapt.to_plain(), **options}


def _checked_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return checked_extra(names)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("metrics: ").removesuffix(".")) from None


class EvaluateSettings(Config):
    """Settings for comparing predictions with references.

    Attributes:
        tolerance_mm: Distance in mm within which surfaces count as matching in the surface Dice.
        metrics: Metrics to compute besides those of every evaluation: ``surface_dice_area``, ``cldice``,
            ``boundary_iou``, ``lesion_wise``, or ``all``.
        both_empty: What a case counts whose prediction and reference lack the label: ``leave_out`` of the means, or
            ``perfect``, which is 1 for overlaps and 0 for distances and errors.
        boundary_mm: Width in mm of the boundary of ``boundary_iou``; null for 2 % of the image's diagonal.
        lesion_dilation: Voxels by which reference lesions are dilated for ``lesion_wise``; those that then touch are one.
        lesion_min_mm3: Volume in mm³ up to which a reference lesion is not counted by ``lesion_wise``.
    """

    tolerance_mm: float = Field(1.0, gt=0)
    metrics: Annotated[tuple[str, ...], AfterValidator(_checked_metrics)] = ()
    both_empty: Literal["leave_out", "perfect"] = "leave_out"
    boundary_mm: float | None = Field(None, gt=0)
    lesion_dilation: int = Field(3, ge=0)
    lesion_min_mm3: float = Field(50.0, ge=0)

    @property
    def options(self) -> MetricOptions:
        """The same settings as the evaluation takes them."""
        from medseg.evaluation.label_maps.metric_options import MetricOptions

        return MetricOptions(**self.to_plain())


class ExperimentConfig(Config):
    """All settings of an experiment; ``medseg config FILE`` prints them with their defaults.

    Attributes:
        name: Name of the experiment and, by default, of its run folder; letters, digits, ``.``, ``_`` and ``-``.
        seed: Seed of random choices, such as folds, fresh weights, patches and dropout.
        data: The dataset, its labels and its folds.
        preprocess: Orientation, spacing and normalisation of the images.
        model: The model and its options.
        patch: Size of the training patches.
        slices: Input channels and view of 2D models.
        augment: Random changes of training patches.
        train: Steps, batches, loss and optimiser.
        predict: Settings of prediction, stored in the model folder.
        evaluate: Settings of evaluation.
        cascade: The first stage of a cascade, for an experiment that trains the second stage; null for a single stage.
        card: Licence, authors and purpose of the model, for its model card.

    >>> from medseg.experiment.config import ExperimentConfig
    >>> config = ExperimentConfig.parse({"name": "liver", "patch": {"size": [64, 64, 32]}})
    >>> config.name, config.model.name, list(config.patch.size)
    ('liver', 'unet_3d', [64, 64, 32])
    """

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    data: DataSettings = DataSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    model: ModelChoice = ModelChoice()
    patch: PatchSettings = PatchSettings()
    slices: SliceSettings = SliceSettings()
    augment: Augmentation = Augmentation()
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    cascade: CascadeSettings | None = None
    card: CardSettings = CardSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        dims = self.model.spatial_dims
        if len(self.patch.size) != dims:
            raise ValueError(
                f"patch.size: found {len(self.patch.size)} sizes {list(self.patch.size)}, expected {dims} because "
                f"model.name is {self.model.name}. Change one of the two"
            )
        if dims == 3 and self.slices != SliceSettings():
            raise ValueError(
                f"slices: found settings for a 2D model, expected none because model.name is {self.model.name}. Remove "
                "them, or choose a 2D model"
            )
        if dims == 2 and self.cascade is not None:
            raise ValueError(
                f"cascade: found a first stage, expected none because model.name is {self.model.name}. Remove it, or "
                "choose a 3D model"
            )
        if dims == 2 and self.augment.dummy_2d_axis is not None:
            raise ValueError(
                f"augment.dummy_2d_axis: found {self.augment.dummy_2d_axis}, expected null because the patches of {self.model.name} "
                "are already slices. Remove it"
            )
        if self.slices.channels == "neighbours" and self.predict.blend == "constant":
            raise ValueError(
                "predict.blend: found constant with slices.channels=neighbours, expected gaussian, because the outer "
                "slices of a window lack their neighbours. Change one of the two"
            )
        return self

    @model_validator(mode="after")
    def _reject_no_effect_settings(self) -> Self:
        """Raise for settings without effect: a missing fold, axes that slices lack, or early stopping without validation."""
        data, mirrored = self.data, self.augment.mirror_axes
        if data.fold != "all" and data.splits is None and data.fold >= data.folds:
            raise ValueError(
                f"data.fold: found {data.fold}, expected 0 to {data.folds - 1} (data.folds). Lower it"
            )
        if self.model.spatial_dims == 2 and mirrored is not None and 2 in mirrored:
            raise ValueError(
                f"augment.mirror_axes: found {list(mirrored)}, expected 0 and 1 at most, because the patches of "
                f"{self.model.name} are slices with two axes, counted without the axis across them. Remove 2"
            )
        if data.fold == "all" and self.train.early_stopping_patience is not None:
            raise ValueError(
                f"train.early_stopping_patience: found {self.train.early_stopping_patience} with "
                "data.fold=all, expected null, because no case is held out for validation. Remove it, or choose a fold"
            )
        return self
