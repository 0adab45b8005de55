"""Dice on held-out patches during training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.patches.patch_dataset import PatchDataset
from medseg.inference.sliding.labelling import RegionThreshold, label_rule
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.labels.overlap import dice_from_counts
from medseg.models.base import Model
from medseg.train.batches import Batches, load_batches
from medseg.train.distributed_training import Distributed
from medseg.train.reports.reporting import ReportLog
from medseg.train.to_device import ToDevice

IMAGE_NAME = "validation/image_reference_prediction"


@torch.no_grad()
def validate(
    model: Model,
    patches: PatchDataset,
    label_sets: LabelSets,
    batch_size: int,
    distributed: Distributed,
    log: ReportLog,
    step: int,
) -> dict[str, float]:
    """Compute the Dice of each foreground label or region over all held-out patches together.

    Each process takes its share of the patches. Voxels that may or may not belong to a label are left out of its
    Dice. An image of the first batch is written to `log`.

    Args:
        model: The model to evaluate; left in evaluation mode.
        patches: The held-out patches.
        label_sets: Classes that each value of the patches' label maps may stand for.
        batch_size: Batch size of one process.
        distributed: The processes.
        log: Log that gets the image.
        step: Optimiser step for the log.

    Returns:
        Dice by name; NaN for a label that neither occurs nor was predicted.
    """
    model.eval()
    labels, device = label_sets.labels, distributed.fabric.device
    to_device = ToDevice(patches, device, model.spatial_dims)
    counts = torch.zeros(label_sets.num_values, len(labels.evaluated) + 1, dtype=torch.int64, device=device)
    steps = range(len(patches) // (batch_size * distributed.size))
    own = Batches(steps, batch_size, rank=distributed.rank, processes=distributed.size)
    for number, batch in enumerate(load_batches(patches, own, workers=0)):
        moved = to_device(batch)
        with distributed.fabric.autocast():
            logits = model(moved["image"])
        counts += _counted(logits, moved["label"], label_sets)
        if number == 0:
            image, label = moved["image"].cpu(), moved["label"].cpu()
            known = torch.where(label < len(labels), label, 0)
            predicted = predicted_classes(logits, labels).cpu()
            log.add_image(IMAGE_NAME, validation_image(image, known, predicted, labels), step)
    dice = dice_of(distributed.sum(counts), label_sets)
    return {one.name: float(value) for one, value in zip(labels.evaluated, dice, strict=True)}


def _counted(logits: Tensor, label: Tensor, label_sets: LabelSets) -> Tensor:
    """Count voxels `(num_values, 1 + m)` by value: all, and those predicted as each evaluated label or region."""
    values, size, rule = label.flatten(), label_sets.num_values, label_rule(label_sets.labels)
    if isinstance(rule, RegionThreshold):  # regions overlap
        chosen = [values, *(values[region.flatten()] for region in rule.present(logits).unbind(1))]
        return torch.stack([torch.bincount(one, minlength=size) for one in chosen], 1)
    classes = logits.shape[1]
    pairs = values * classes + rule.classes(logits.movedim(1, -1)).flatten()
    counts = torch.bincount(pairs, minlength=size * classes).view(size, classes)
    counts[:, 0] = counts.sum(1)
    return counts


def dice_of(counts: Tensor, label_sets: LabelSets) -> NDArray[np.float64]:
    """Compute the Dice of each evaluated label or region.

    Args:
        counts: Voxels `(num_values, 1 + m)` by reference value: all of them, and those predicted as each label.
        label_sets: Meaning of the reference values. Voxels that may or may not belong to a label are left out.

    Returns:
        Dice `(m,)`; NaN for a label that neither occurs nor was predicted.
    """
    everything, predicted = np.split(counts.cpu().numpy(), [1], axis=1)
    certain, known = label_sets.certain(), label_sets.known()
    return dice_from_counts(
        (predicted * certain).sum(0), (predicted * known).sum(0), (everything * certain).sum(0)
    )


def predicted_classes(logits: Tensor, labels: Labels) -> Tensor:
    """Return the class indices `(n, 1, *spatial)` of logits; regions become the classes that they are written as."""
    rule = label_rule(labels)
    class_of_value = torch.as_tensor(labels.to_classes(rule.values).astype(np.int64), device=logits.device)
    return class_of_value[rule.classes(logits.movedim(1, -1)).long()].unsqueeze(1)


def validation_image(
    image: Tensor, reference: Tensor, predicted: Tensor, labels: Labels, most: int = 4
) -> NDArray[np.uint8]:
    """Draw image, reference and prediction of several samples, each in the slice with the most foreground.

    Args:
        image: Images `(n, c, *spatial)`; the first channel is shown.
        reference: Class indices `(n, 1, *spatial)`.
        predicted: Class indices `(n, 1, *spatial)`.
        labels: Labels with their colours.
        most: Maximum number of samples.

    Returns:
        RGB image `(H, W, 3)`, one row of panels per sample, with the second array axis upwards.
    """
    palette = np.array([label.colour for label in labels], dtype=np.float32)
    rows = []
    for sample in range(min(most, len(image))):
        grey, truth, guess = (t[sample, 0].float().numpy() for t in (image, reference, predicted))
        if grey.ndim == 3:
            z = int((truth > 0).sum((0, 1)).argmax())
            grey, truth, guess = grey[..., z], truth[..., z], guess[..., z]
        low, high = np.percentile(grey, [0.5, 99.5])
        shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)[..., None] * np.full(3, 255.0)
        panels = [shown, _painted(shown, truth, palette), _painted(shown, guess, palette)]
        rows.append(np.concatenate([np.flipud(panel.transpose(1, 0, 2)) for panel in panels], axis=1))
    return np.concatenate(rows).astype(np.uint8)


def _painted(
    rgb: NDArray[np.floating], classes: NDArray[np.floating], palette: NDArray[np.float32]
) -> NDArray[np.floating]:
    index = classes.astype(np.intp)
    return np.where(index[..., None] > 0, 0.5 * rgb + 0.5 * palette[index], rgb)
