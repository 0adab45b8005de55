"""Checks before the data are prepared, which may take hours, and before the run folder is created."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ConfigError, ModelError
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss
from medseg.models.base import Model
from medseg.train.parameter_groups import FrozenParts, parameter_groups

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig


def check_learnable(experiment: ExperimentConfig, model: Model, label_sets: LabelSets) -> None:
    """Check that the model, its loss and its optimiser fit the labels; the model is not changed.

    Args:
        experiment: Experiment to train.
        model: The model that was built for it.
        label_sets: Classes that each value of a prepared label map may stand for.

    Raises:
        ConfigError: They do not fit.
    """
    train = experiment.train
    if model.computes_own_losses and not (label_sets.is_fully_annotated and not train.class_weights):
        raise ConfigError(
            f"model.name: found {experiment.model.name}, which has losses of its own, with regions, an ignore label, "
            "partially annotated cases or class weights, expected none of these. Choose a U-Net, for example."
        )
    build_loss(
        train.loss, batch_dice=train.batch_dice, label_sets=label_sets, class_weights=train.class_weights
    )
    parameter_groups(model, train.optimizer)
    FrozenParts(model, train.freeze, steps=0)  # checks the names and freezes nothing


def check_patch(experiment: ExperimentConfig, channels: int, labels: Labels) -> None:
    """Check that the patch is large enough for the model, by a pass of a model without weights.

    Args:
        experiment: Experiment with the patch size and the batch size.
        channels: Number of input channels of the model.
        labels: Labels of the dataset.

    Raises:
        ConfigError: The patch is too small.
    """
    size, batch = tuple(experiment.patch.size), experiment.train.batch_size
    try:
        with torch.device("meta"):
            model = experiment.model.without_pretrained().build(channels, labels.num_outputs)
            if model.computes_own_losses:  # these need numbers
                return
            image, label = torch.empty(batch, channels, *size), torch.zeros(batch, 1, *size).long()
            model.criterion = _no_loss
            view = SliceView(
                experiment.slices, experiment.patch.slice_axis, experiment.preprocess.orientation
            )
            if view.radiological_view is not None:
                image, label = view.radiological_view.turn(image), view.radiological_view.turn(label)
            model.train().losses(image, label)
    except ModelError as error:
        raise ConfigError(f"patch.size: found {list(size)}: {error}") from error
    except Exception:
        return  # Some layers need numbers. Other errors are reported when there are some.


def _no_loss(logits: Tensor, label: Tensor) -> Tensor:
    return logits.sum()
