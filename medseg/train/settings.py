"""Settings of training; free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medseg.config import Config

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
# The names of `medseg.losses.LOSSES`, which imports torch; a test compares the two.
LossName = Literal["dice_ce", "dice", "cross_entropy", "dice_focal", "focal", "generalized_dice", "tversky"]


class OptimizerSettings(Config):
    """How weights are updated.

    Attributes:
        name: ``sgd`` with Nesterov momentum, or ``adamw``.
        lr: learning rate at the start.
        momentum: of SGD.
        weight_decay: of the parameters that `decay` names.
        decay: ``all`` parameters; or ``kernels``, without norms, biases and embeddings, as transformers are trained.
        backbone_lr: factor of the rate of a published backbone, such as 0.1 where `model.weights` fills it.
        layer_decay: factor of the rate from each stage of that backbone (block of a vision transformer) to the one
            before it.
        schedule: ``poly`` is (1 − step/steps)^0.9, nnU-Net's; ``cosine`` falls to 0; ``constant`` stays.
        warmup_steps: steps over which the rate rises linearly from near 0.
        clip_norm: largest norm of all gradients together.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(3e-5, ge=0)
    decay: Literal["all", "kernels"] = "all"
    backbone_lr: float = Field(1.0, gt=0, le=1)
    layer_decay: float = Field(1.0, gt=0, le=1)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup_steps: Count = 0
    clip_norm: float = Field(12.0, gt=0)


class TrainSettings(Config):
    """How long, on what, and with which loss.

    Attributes:
        steps: optimiser steps in all.
        batch_size: patches a step.
        loss: a name of `medseg.losses.LOSSES`. batch_dice: sum overlaps over the batch first.
        foreground: share of patches centred on foreground.
        freeze: parts that keep their weights and statistics: ``backbone``, ``backbone.stem``, ``backbone.stage1`` …, or
            prefixes of parameter names.
        freeze_steps: steps after which these parts are trained, too; null for never.
        precision: ``auto`` takes bfloat16 where the hardware multiplies it natively.
        workers: processes that cut and augment patches; 0 does it in the main one.
        report_every, validate_every, save_every: in steps.
        validation_batches: batches of held-out patches a validation; 0 switches validation off.
        deterministic: only reproducible operations on CUDA (CPU training always is).
    """

    steps: Positive = 1000
    batch_size: Positive = 2
    loss: LossName = "dice_ce"
    batch_dice: bool = False
    foreground: float = Field(0.33, ge=0, le=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    freeze: tuple[str, ...] = ()
    freeze_steps: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    workers: Count = 0
    report_every: Positive = 25
    validate_every: Positive = 250
    validation_batches: Count = 8
    save_every: Positive = 250
    deterministic: bool = False
