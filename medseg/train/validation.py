"""Dice on held-out patches, while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.data.patches import PatchDataset
from medseg.labels import Labels
from medseg.models.base import Model
from medseg.train.batches import Batches, load_batches
from medseg.train.pictures import validation_picture
from medseg.train.reports import ReportLog
from medseg.train.team import Team

PICTURE = "validation/image_reference_prediction"


def on_device(image: Tensor, team: Team) -> Tensor:
    """The image `(n, c, *spatial)` on the device, channels last in memory."""
    layout = torch.channels_last if image.dim() == 4 else torch.channels_last_3d
    return image.to(team.fabric.device).contiguous(memory_format=layout)


@torch.no_grad()
def validate(
    model: Model,
    patches: PatchDataset,
    labels: Labels,
    batch_size: int,
    team: Team,
    log: ReportLog,
    step: int,
) -> dict[str, float]:
    """Dice of each foreground label over all held-out patches together, of which each process takes its share.

    A picture of the first batch goes to `log`.

    Args:
        model: as it is to be judged. patches: as many as are looked at.
        batch_size: of one process. step: for the log.

    Returns:
        Label name → Dice; NaN for a label that neither occurs nor was predicted.
    """
    model.eval()
    classes = len(labels)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    steps = range(len(patches) // (batch_size * team.size))
    own = Batches(steps, batch_size, rank=team.rank, processes=team.size)
    for number, batch in enumerate(load_batches(patches, own, workers=0)):
        label = batch["label"].to(team.fabric.device)
        with team.fabric.autocast():
            predicted = model(on_device(batch["image"], team)).argmax(1, keepdim=True)
        pairs = label.flatten() * classes + predicted.flatten()
        confusion += torch.bincount(pairs, minlength=classes * classes).view(classes, classes).cpu()
        if number == 0:
            log.add_picture(
                PICTURE, validation_picture(batch["image"], batch["label"], predicted.cpu(), labels), step
            )
    confusion = team.summed(confusion)
    overlap = confusion.diagonal().double()
    dice = 2 * overlap / (confusion.sum(0) + confusion.sum(1)).double()
    return {label.name: float(dice[index]) for index, label in enumerate(labels) if index > 0}
