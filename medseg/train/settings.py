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
    """Return the seconds of a duration such as ``90s``, ``30m`` or ``1.5h``.

    Args:
        duration: Positive number with unit ``s``, ``m`` or ``h``.

    Returns:
        Seconds.

    Raises:
        ValueError: The text is not a duration, or it is zero.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", duration)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError("expected a number with its unit s, m or h, such as 30m")
    return seconds


def _checked_interval(value: Any) -> Any:
    """Check steps or a duration; a boolean, which is a number in Python, is neither."""
    if isinstance(value, str) and not value.isdecimal():
        try:
            seconds_of(value)
        except ValueError:
            raise ValueError("expected a number of steps such as 25, or a time such as 30s or 1m") from None
        return value
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ValueError("expected a number of steps such as 25, or a time such as 30s or 1m")
    return int(value)


def _checked_duration(value: Any) -> Any:
    seconds_of(str(value))
    return value


Duration = Annotated[str, BeforeValidator(_checked_duration)]
Interval = Annotated[int | str, BeforeValidator(_checked_interval)]


class OptimizerSettings(Config):
    """The optimiser and its learning rate.

    Attributes:
        name: ``sgd`` with Nesterov momentum, or ``adamw``.
        lr: Learning rate at the start of the schedule.
        momentum: Momentum of ``sgd``.
        weight_decay: Weight decay of the parameters that `weight_decay_on` selects.
        weight_decay_on: ``all`` parameters, or ``kernels`` to exclude norms, biases and embeddings, as transformers are
            trained.
        backbone_lr_factor: Factor of the learning rate of a pretrained backbone, such as 0.1 with `model.weights`.
        layerwise_lr_decay: Factor of the learning rate from each stage of the backbone (block of a vision transformer; stage of
            decoder or encoder of a U-Net) to the stage before it.
        schedule: ``poly`` is (1 − step/steps)^0.9, as in nnU-Net; ``cosine`` falls to 0; ``constant`` does not change;
            ``wsd`` (warm-up, stable, decay) is constant and falls to 0 over the last `decay_fraction` of the steps.
        warmup_steps: Steps over which the learning rate rises linearly from near 0.
        decay_fraction: Fraction of the steps over which ``wsd`` falls.
        clip_norm: Largest norm of all gradients together; larger gradients are scaled down to it.
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
    """The length of training, its batches, its loss and its reports.

    Attributes:
        steps: Total optimiser steps; null uses `max_time`, or 1000 steps if that is null, too.
        max_time: Time for the training loop with its validations and checkpoints, such as ``30m``; the number of steps is
            planned from the measured speed. If `steps` is given too, training ends at whichever comes first.
        batch_size: Patches per batch, on each process.
        gradient_accumulation: Batches whose gradients make one step together, as one large batch would;
            `batch_dice`, batch norm, and means over weighted or annotated voxels still use one batch of every process.
        ema_decay: Decay of an exponential moving average (EMA) of the weights, which is then validated and exported; null
            uses the weights themselves.
        loss: Name of a loss in `medseg.losses.LOSSES`.
        batch_dice: Sum the overlaps over the batch before the Dice is computed, instead of one Dice per sample.
        keep_old_labels: Whether the network that `model.weights` names teaches its labels where the annotation of a case leaves
            them open, so that a network learns new labels without forgetting the old ones.
        class_weights: Weight of each label's or region's voxels in the cross-entropy of ``dice_ce`` or ``cross_entropy``,
            1 for labels that are not named; the sum is divided by the sum of the weights, as in PyTorch.
        oversample_foreground: Fraction of patches centred on foreground.
        freeze: Parts that keep their weights and statistics: ``backbone``, ``backbone.stem``, ``backbone.stage1`` and so
            on, or prefixes of parameter names, such as ``encoder`` of a U-Net.
        freeze_steps: Steps after which the frozen parts are trained, too; null freezes them to the end.
        optimizer: Optimiser and learning rate.
        precision: Arithmetic of the network. ``auto`` is float16 with scaled gradients for 3D models on CUDA devices,
            bfloat16 for other models where the hardware multiplies it natively, and float32 elsewhere. ``float32`` is exact;
            ``tf32`` is float32 with products of 10 bits, which are faster on CUDA devices.
        compile: Compile the forward pass of the network. Its first steps take minutes longer, later ones less time, mostly
            on CUDA devices.
        workers: Processes that prepare cases before the training and that cut patches and, unless `augment.device` is
            ``device``, augment them during the training; 0 does everything in the main process. ``auto`` prepares large cases
            with one process per core; it cuts patches in the main process on a processor, and on a CUDA device with one
            process for each core that the process may use, at most 12. No more cases are prepared at once than fit into
            the free memory. The number does not change the patches.
        report_every: Steps between reports, such as 25, or the time between them, such as ``30s`` or ``1m``. Every validation
            is reported, too.
        loggers: Names of loggers that receive the reports besides ``metrics.jsonl`` and TensorBoard: ``mlflow`` (extra
            ``medseg[mlflow]``), or those of installed packages.
        validate_every: Steps between validations.
        validation_batches: Batches of held-out patches per validation; 0 switches validation off.
        early_stopping_patience: Validations without a better mean Dice after which training ends; null trains to the end.
        save_every: Steps between checkpoints.
        deterministic: Use only reproducible operations on CUDA; training on the CPU is always reproducible.
    """

    steps: Positive | None = None
    max_time: Duration | None = None
    batch_size: Positive = 2
    gradient_accumulation: Positive = 1
    ema_decay: float | None = Field(None, gt=0, lt=1)
    loss: LossName = "dice_ce"
    batch_dice: bool = False
    keep_old_labels: bool = False
    class_weights: dict[str, Weight] | None = None
    oversample_foreground: float = Field(0.33, ge=0, le=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    freeze: tuple[str, ...] = ()
    freeze_steps: Positive | None = None
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    workers: Count | Literal["auto"] = "auto"
    report_every: Interval = 25
    loggers: tuple[str, ...] = ()
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
                "early_stopping_patience: found validation_batches 0, expected a validation to watch. Change one of the two"
            )
        return self

    @property
    def report_seconds(self) -> float | None:
        """`report_every` in seconds; None if it is a number of steps."""
        return seconds_of(self.report_every) if isinstance(self.report_every, str) else None

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds, or None."""
        return None if self.max_time is None else seconds_of(self.max_time)
