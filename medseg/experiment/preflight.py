"""Checks that run before the data are prepared, which may take hours, and before a run folder is created."""

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
from medseg.train.optimization.parameter_groups import FrozenParts, parameter_groups

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig


def check_learnable(experiment: ExperimentConfig, model: Model, label_sets: LabelSets) -> None:
    """Raise unless the model, its loss and its optimiser support the experiment; the model is not changed.

    Args:
        experiment: Experiment to check.
        model: Its model.
        label_sets: Meaning of the values in its label maps.

    Raises:
        ConfigError: A setting does not fit the model or the labels.
    """
    train = experiment.train
    if model.computes_own_losses and not (label_sets.is_fully_annotated and not train.class_weights):
        raise ConfigError(
            f"model.name: found {experiment.model.name}, which computes its own losses, with regions, an ignore label, partially "
            "annotated cases or class weights, expected none of them. Choose another model, such as unet_3d."
        )
    build_loss(
        train.loss, batch_dice=train.batch_dice, label_sets=label_sets, class_weights=train.class_weights
    )
    parameter_groups(model, train.optimizer)
    FrozenParts(model, train.freeze, steps=0)  # checks the names and freezes nothing


def check_patch(experiment: ExperimentConfig, channels: int, labels: Labels) -> None:
    """Raise if the patch is too small for the model, by a forward pass on torch's meta device.

    Args:
        experiment: Experiment with the sizes of patch and batch.
        channels: Number of input channels of the model.
        labels: Labels of the dataset.

    Raises:
        ConfigError: The patch is too small.
    """
    size, batch = tuple(experiment.patch.size), experiment.train.batch_size
    try:
        with torch.device("meta"):
            model = experiment.model.without_pretrained().build(channels, labels.num_outputs)
            if model.computes_own_losses:  # they need values, which the meta device lacks
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
        return  # Some layers need values. Other errors are raised when training starts.


def _no_loss(logits: Tensor, label: Tensor) -> Tensor:
    return logits.sum()
