"""The experiment: the typed config of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, Field, model_serializer, model_validator

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
from medseg.model_folder.settings import PredictSettings
from medseg.models.catalog import MODELS, ModelOptions, parse_options
from medseg.train.settings import TrainSettings

if TYPE_CHECKING:
    from medseg.models.base import Model

DEFAULT_MODEL = "unet_3d"


class ModelChoice(Config):
    """The name of a registered model and all options of that model, with defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = DEFAULT_MODEL

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Check the options and fill in defaults, so that two ways of writing one model compare equal."""
        name = values.get("name", DEFAULT_MODEL) if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        chosen = {key: value for key, value in values.items() if key != "name"}
        try:
            return {"name": name, **parse_options(name, chosen, source=name).to_plain()}
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def options(self) -> ModelOptions:
        """Return the typed options."""
        return parse_options(self.name, self.model_extra or {}, source=self.name)

    @property
    def spatial_dims(self) -> int:
        """The number of spatial axes, 2 or 3."""
        return MODELS.get(self.name).dims

    def without_pretrained(self) -> ModelChoice:
        """Return the same architecture without published weights."""
        plain = self.to_plain()
        return type(self).parse({**plain, "weights": None}) if plain.get("weights") else self

    def build(self, in_channels: int, num_classes: int) -> Model:
        """Build the model with fresh weights."""
        return self.options().build(
            in_channels=in_channels, num_classes=num_classes, spatial_dims=self.spatial_dims
        )

    @model_serializer
    def _resolved(self) -> dict[str, Any]:
        return {"name": self.name, **self.options().to_plain()}


class EvaluateSettings(Config):
    """Settings of the comparison of predictions with references.

    Attributes:
        tolerance_mm: Distance in mm within which a surface counts as correct in the surface Dice.
    """

    tolerance_mm: float = Field(1.0, gt=0)


class ExperimentConfig(Config):
    """All settings that define a run. ``medseg config FILE`` prints them with all defaults filled in.

    Attributes:
        name: Name of the experiment; letters, digits, ``.``, ``_`` and ``-``.
        seed: Seed of the random choices, such as splits, patches and dropout.
        data: Dataset, labels and split.
        preprocess: Orientation, spacing, cropping and normalisation.
        model: Model and its options.
        patch: Size and choice of the patches.
        slices: Slices as input of a 2-D model.
        augment: Augmentation of the patches.
        train: Loss, optimiser, length and precision of training.
        predict: Prediction settings that are stored with the model.
        evaluate: Comparison of predictions with references.
        cascade: First stage of a cascade; null for a single stage.
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
                f"slices: found settings for a 2-D model, expected none because model.name is {self.model.name}. Remove "
                "them, or choose a 2-D model"
            )
        if dims == 2 and self.cascade is not None:
            raise ValueError(
                f"cascade: found a first stage, expected none because model.name is {self.model.name}. Remove it, or "
                "choose a 3-D model"
            )
        if dims == 2 and self.augment.dummy_2d_axis is not None:
            raise ValueError(
                f"augment.dummy_2d_axis: found {self.augment.dummy_2d_axis}, expected null because the patches of {self.model.name} "
                "are slices anyway. Remove it"
            )
        if self.slices.channels == "neighbours" and self.predict.blend == "constant":
            raise ValueError(
                "predict.blend: found constant with slices.channels=neighbours, expected gaussian, because the outer "
                "slices of a window lack their neighbours. Change one of the two"
            )
        return self

    @model_validator(mode="after")
    def _reject_no_effect_settings(self) -> Self:
        """Refuse settings without effect, such as a fold that does not exist or patience without validation."""
        data, mirrored = self.data, self.augment.mirror_axes
        if data.fold != "all" and data.splits is None and data.fold >= data.folds:
            raise ValueError(
                f"data.fold: found {data.fold}, expected 0 to {data.folds - 1} (data.folds). Lower it"
            )
        if self.model.spatial_dims == 2 and mirrored is not None and 2 in mirrored:
            raise ValueError(
                f"augment.mirror_axes: found {list(mirrored)}, expected 0 and 1 at most, because the patches of "
                f"{self.model.name} are slices, whose two axes are counted without that across them. Remove 2"
            )
        if data.fold == "all" and self.train.early_stopping_patience is not None:
            raise ValueError(
                f"train.early_stopping_patience: found {self.train.early_stopping_patience} with data.fold=all, expected null, because no case is held "
                "out to see how well it does. Remove it, or train a fold"
            )
        return self
