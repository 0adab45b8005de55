"""Checks that run before the data are prepared, which may take hours, and before a run folder is created."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medseg.data.datasets.cases import Case
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ConfigError, DataError, ModelError, collected_warnings
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.build import build_loss
from medseg.losses.catalog import LOSSES, list_losses
from medseg.models.base import Model
from medseg.storage.free_space import require_space
from medseg.train.optimization.parameter_groups import FrozenParts, parameter_groups
from medseg.volumes.grid import shape_at_spacing

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig

_IMAGE_BYTES, _LABEL_BYTES = 4, 1  # of a voxel of a prepared case
_LEAST_KEPT_BY_CROP = 0.1  # of an image, by the crop to non-zero voxels; brains fill a third of their images


def check_learnable(
    experiment: ExperimentConfig, model: Model, label_sets: LabelSets, *, soft_labels: bool = False
) -> None:
    """Raise unless the model, its loss and its optimiser support the experiment; the model is not changed.

    Args:
        experiment: Experiment to check.
        model: Its model.
        label_sets: Meaning of the values in its label maps.
        soft_labels: Whether a case has label probabilities.

    Raises:
        ConfigError: A setting does not fit the model or the labels.
    """
    train = experiment.train
    if model.computes_own_losses:
        _check_own_losses(experiment, model, label_sets)
    if label_sets.labels.regions and callable(getattr(model, "instances", None)):
        raise ConfigError(
            f"model.name: found {experiment.model.name}, which finds instances, with regions, which may overlap, expected labels. Set "
            "data.regions={}, or choose another model, such as unet_3d."
        )
    if soft_labels:
        _check_soft_labels(experiment, model, label_sets)
    build_loss(
        train.loss, batch_dice=train.batch_dice, label_sets=label_sets, class_weights=train.class_weights
    )
    parameter_groups(model, train.optimizer)
    FrozenParts(model, train.freeze, steps=0)  # checks the names and freezes nothing


def _check_own_losses(experiment: ExperimentConfig, model: Model, label_sets: LabelSets) -> None:
    """Raise unless a model that computes its own losses can learn from these labels with these settings."""
    train, name = experiment.train, experiment.model.name
    open_labels = bool(label_sets.sets) and not model.learns_label_sets
    if label_sets.labels.regions or train.class_weights or open_labels:
        others = "" if model.learns_label_sets else ", an ignore label, partially annotated cases"
        raise ConfigError(
            f"model.name: found {name}, which computes its own losses, with regions{others} or class weights, expected none "
            "of them. Choose another model, such as unet_3d."
        )
    if train.keep_old_labels:
        raise ConfigError(
            f"train.keep_old_labels: found true for {name}, which computes its own losses, expected false. Choose "
            "another model, such as unet_3d."
        )


def _check_soft_labels(experiment: ExperimentConfig, model: Model, label_sets: LabelSets) -> None:
    """Raise unless the model and its loss can learn from label probabilities."""
    train, what = experiment.train, "label_probabilities: found cases with label probabilities"
    if model.computes_own_losses or callable(getattr(model, "instances", None)):
        raise ConfigError(
            f"{what} and the model {experiment.model.name}, which computes losses of label maps, expected another model, such as "
            "unet_3d. Choose one, or give label maps."
        )
    if not label_sets.is_fully_annotated:
        raise ConfigError(
            f"{what} and regions, an ignore label or partially annotated cases, expected none of them. Train without these, or "
            "give label maps."
        )
    if not LOSSES.get(train.loss).supports_soft_labels:
        known = ", ".join(name for name in list_losses() if LOSSES.get(name).supports_soft_labels)
        raise ConfigError(
            f"{what} and train.loss={train.loss}, expected one of {known}. Choose one of these, or give label maps."
        )


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
            model = experiment.model.with_fresh_weights().build(channels, labels.num_outputs)
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


def check_space(store: Path, cases: Sequence[Case], preprocessing: Preprocessing) -> None:
    """Raise if the disk has less free space than the prepared cases take at least; only headers are read.

    Args:
        store: Folder of the prepared cases. Cases that are stored already are not counted.
        cases: The cases. Those whose header cannot be read, and DICOM series, are not counted.
        preprocessing: Their preprocessing.

    Raises:
        DiskFullError: The free space does not suffice.
    """
    kept = _LEAST_KEPT_BY_CROP if preprocessing.crop_to_nonzero else 1.0
    needed = 0.0
    for case in cases:
        if case.images[0].is_dir() or any(store.glob(f"{glob.escape(case.id)}-*")):
            continue
        with suppress(DataError), collected_warnings():
            grid = case.reading.read_grid(case.images[0])
            own = grid.reoriented(preprocessing.axcodes(grid))
            shape = shape_at_spacing(own.shape, own.spacing, preprocessing.target_spacing(own.spacing))
            needed += kept * math.prod(shape) * (len(preprocessing.channels) * _IMAGE_BYTES + _LABEL_BYTES)
    require_space(store, int(needed), "the prepared cases")


def _no_loss(logits: Tensor, label: Tensor) -> Tensor:
    return logits.sum()
