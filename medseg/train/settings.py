"""Settings of training; free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from medseg.config import Config
from medseg.losses.catalog import check_loss_name

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
LossName = Annotated[str, AfterValidator(check_loss_name)]
DEFAULT_STEPS = 1000
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(duration: str) -> float:
    """Seconds of a duration such as ``90s``, ``30m`` or ``1.5h``.

    Raises:
        ValueError: the text is no such duration, or it is zero.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", duration)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError("expected a number with its unit s, m or h, such as 30m")
    return seconds


def _checked_duration(value: Any) -> Any:
    seconds_of(str(value))
    return value


Duration = Annotated[str, BeforeValidator(_checked_duration)]


class OptimizerSettings(Config):
    """How weights are updated.

    Attributes:
        name: ``sgd`` with Nesterov momentum, or ``adamw``.
        lr: learning rate at the start.
        momentum: of SGD.
        weight_decay: of the parameters that `decay` names.
        decay: ``all`` parameters; or ``kernels``, without norms, biases and embeddings, as transformers are trained.
        backbone_lr_factor: factor of the rate of a published backbone, such as 0.1 where `model.weights` fills it.
        layerwise_lr_decay: factor of the rate from each stage of that backbone (block of a vision transformer) to the one
            before it.
        schedule: ``poly`` is (1 − step/steps)^0.9, nnU-Net's; ``cosine`` falls to 0; ``constant`` stays; ``wsd``
            (warm-up, stable, decay) stays and then falls to 0 over the last `decay_fraction` of the steps.
        warmup_steps: steps over which the rate rises linearly from near 0.
        decay_fraction: of ``wsd``.
        clip_norm: largest norm of all gradients together.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(3e-5, ge=0)
    weight_decay_on: Literal["all", "kernels"] = "all"
    backbone_lr_factor: float = Field(1.0, gt=0, le=1)
    layerwise_lr_decay: float = Field(1.0, gt=0, le=1)
    schedule: Literal["poly", "cosine", "constant", "wsd"] = "poly"
    warmup_steps: Count = 0
    decay_fraction: float = Field(0.2, gt=0, le=1)
    clip_norm: float = Field(12.0, gt=0)


class TrainSettings(Config):
    """How long, on what, and with which loss.

    Attributes:
        steps: optimiser steps in all; 1000 where there is no budget either.
        budget: time of the training loop with its validations and checkpoints, such as ``30m``; the number of steps is
            planned from the measured speed. With `steps` given too, the earlier end counts.
        batch_size: patches at once, on each process.
        accumulate: batches whose gradients make one step together, as one large batch would; `batch_dice`, batch norm,
            and means over weighted or known voxels still look at one batch of every process.
        ema: decay of an exponential moving average of the weights, which is then what is validated and exported; null
            for the weights themselves.
        loss: name of the loss: ``dice_ce``, ``dice``, ``cross_entropy``, ``dice_focal``, ``focal``, ``generalized_dice``,
            ``tversky``, or one that was added with `medseg.losses.register_loss`.
        batch_dice: sum overlaps over the batch before dividing.
        class_weights: label or region → factor of its voxels in the cross-entropy of ``dice_ce`` or ``cross_entropy``,
            1 for those not named; the sum is divided by the sum of the weights, as torch does.
        foreground: share of patches centred on foreground.
        freeze: parts that keep their weights and statistics: ``backbone``, ``backbone.stem``, ``backbone.stage1`` …, or
            prefixes of parameter names.
        freeze_steps: steps after which these parts are trained, too; null for never.
        precision: ``auto`` takes bfloat16 where the hardware multiplies it natively.
        workers: processes that cut and augment patches; 0 does it in the main one.
        report_every, validate_every, save_every: in steps.
        validation_batches: batches of held-out patches a validation; 0 switches validation off.
        patience: validations without a better mean Dice after which training ends; null to go on to the end.
        deterministic: only reproducible operations on CUDA (CPU training always is).
    """

    steps: Positive | None = None
    max_time: Duration | None = None
    batch_size: Positive = 2
    gradient_accumulation: Positive = 1
    ema_decay: float | None = Field(None, gt=0, lt=1)
    loss: LossName = "dice_ce"
    batch_dice: bool = False
    class_weights: dict[str, Weight] | None = None
    oversample_foreground: float = Field(0.33, ge=0, le=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    freeze: tuple[str, ...] = ()
    freeze_steps: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    workers: Count = 0
    report_every: Positive = 25
    validate_every: Positive = 250
    validation_batches: Count = 8
    early_stopping_patience: Positive | None = None
    save_every: Positive = 250
    deterministic: bool = False

    @model_validator(mode="before")
    @classmethod
    def _an_end(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("steps") is None and values.get("max_time") is None:
            return {**values, "steps": DEFAULT_STEPS}
        return values

    @model_validator(mode="after")
    def _validated(self) -> TrainSettings:
        if self.early_stopping_patience is not None and not self.validation_batches:
            raise ValueError(
                "patience: found no validation to watch (validation_batches is 0). Set one of the two otherwise"
            )
        return self

    @property
    def max_seconds(self) -> float | None:
        """The budget in seconds, or None."""
        return None if self.max_time is None else seconds_of(self.max_time)
