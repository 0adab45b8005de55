"""Continual learning: the network that a training started from teaches its labels where they are not annotated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg.data.preprocessing.prepare import Preprocessing
from medseg.errors import ConfigError
from medseg.fine_tuning.network_ends import Ends
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.weight_source import WeightSource
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.old_label_distillation import OldLabelDistillation
from medseg.model_folder.folder import network_builder, write_model_folder
from medseg.models.base import Criterion, Model
from medseg.runtime.devices import memory_format

_KEY = "train.keep_old_labels"
_REMEDY = "Plan it with medseg plan DATASET --from MODEL --keep-old-labels"


@dataclass(frozen=True)
class OldLabels:
    """The old network, and how its channels and classes are found in the new one.

    Attributes:
        model: The old network.
        channels: Index of each of its input channels in the images of the new network.
        distillation: Loss of the new network against its probabilities.
    """

    model: Model
    channels: tuple[int, ...]
    distillation: OldLabelDistillation

    @classmethod
    def of(cls, source: WeightSource, ends: Ends, adapt: AdaptSettings, label_sets: LabelSets) -> OldLabels:
        """Prepare the old network as a teacher.

        Args:
            source: The trained model that the training starts from.
            ends: Names of the channels and outputs of the new network.
            adapt: Names that differ.
            label_sets: Classes that each label value may stand for.

        Returns:
            The teacher.

        Raises:
            ConfigError: Its labels or channels are not known or not in the new network, or there is nothing to teach.
        """
        where, known = source.path, source.weights.ends
        if source.saved is None or source.labels is None or known.inputs is None or known.outputs is None:
            raise ConfigError(
                f"{_KEY}: found true with {where}, which holds tensors only, expected a model folder, a run or a checkpoint "
                "of nnU-Net v2. Set it to false."
            )
        if known.regions or ends.regions:
            raise ConfigError(f"{_KEY}: found true with regions, expected labels. Set it to false.")
        here = {adapt.channels.get(name, name): number for number, name in enumerate(ends.inputs or ())}
        if missing := [name for name in known.inputs if name not in here]:
            raise ConfigError(
                f"{_KEY}: found no channel {', '.join(missing)}, which {where} needs to teach its labels, expected all of its "
                "channels. Name them in model.adapt.channels, or set it to false."
            )
        old = {name: number for number, name in enumerate(known.outputs) if number > 0}
        classes = [0, *(old.get(adapt.labels.get(name, name)) for name in (ends.outputs or ())[1:])]
        distillation = OldLabelDistillation(label_sets, classes)
        if not distillation.shared:
            raise ConfigError(
                f"{_KEY}: found none of the labels of {where} ({', '.join(old)}) in data.labels, expected those to keep. "
                f"{_REMEDY}."
            )
        if not distillation.open.any():
            raise ConfigError(
                f"{_KEY}: found all labels annotated in all cases, expected cases that leave old labels open. Set "
                f"data.partially_annotated, or set it to false. {_REMEDY}."
            )
        model = network_builder(source.saved)(len(known.inputs), len(known.outputs))
        model.load_state_dict(dict(source.weights.tensors))
        channels = tuple(here[name] for name in known.inputs)
        return cls(model.eval().requires_grad_(False), channels, distillation)

    def taught(self, labels: Labels) -> tuple[str, ...]:
        """Return the names of the labels that the network teaches."""
        return tuple(labels.names[place] for place in self.distillation.shared)

    def on(self, device: torch.device) -> OldLabels:
        """Return the same teacher with its network moved to a device, in the memory format that is fastest there."""
        self.model.to(device).to(memory_format=memory_format(device, self.model.spatial_dims))
        return self

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Return the probabilities `(n, k, *spatial)` of the old network for an image of the new one."""
        same = self.channels == tuple(range(image.shape[1]))
        logits: Tensor = self.model(image if same else image[:, list(self.channels)])
        return logits.float().softmax(1)


class KeepOldLabels:
    """A criterion that adds the distillation of old labels to that of the new network.

    Args:
        criterion: The criterion of the annotated labels.
        old: The old network, on the device of the images.
    """

    def __init__(self, criterion: Criterion, old: OldLabels) -> None:
        self._criterion, self._old = criterion, old
        self._image: Tensor | None = None
        self._probabilities: Tensor | None = None

    def see(self, image: Tensor) -> None:
        """Remember the image `(n, c, *spatial)` of the next logits."""
        self._image, self._probabilities = image, None

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum of both losses; maps of auxiliary heads on coarser grids have the first one only."""
        loss = self._criterion(logits, label)
        image = self._image
        if image is None or logits.shape[2:] != image.shape[2:]:
            return loss
        if self._probabilities is None:
            self._probabilities = self._old.probabilities(image)
        taught: Tensor = self._old.distillation(logits, label, self._probabilities)
        return loss + taught


def show_to_old_model(model: Model, image: Tensor) -> None:
    """Give the next image `(n, c, *spatial)` to the old network, if a model is trained with one."""
    if isinstance(model.criterion, KeepOldLabels):
        model.criterion.see(image)


def check_same_images(
    source: WeightSource, preprocessing: Preprocessing, channel_names: tuple[str, ...]
) -> None:
    """Raise `ConfigError` unless the new network sees images as the old one did, so that its probabilities hold.

    Args:
        source: The trained model.
        preprocessing: Preprocessing of the new network.
        channel_names: Names of its channels.
    """
    saved = source.saved
    if saved is None:
        return
    old, names = saved.preprocessing, saved.channel_names
    pairs: list[tuple[str, object, object]] = [
        ("orientation", preprocessing.orientation, old.orientation),
        ("spacing", preprocessing.spacing, old.spacing),
    ]
    pairs += [
        (f"normalisation of {name}", preprocessing.channels[place], old.channels[names.index(name)])
        for place, name in enumerate(channel_names)
        if name in names
    ]
    for what, found, expected in pairs:
        if found != expected:
            raise ConfigError(
                f"{_KEY}: preprocess: {what}: found {found}, expected {expected} as in {source.path}, whose probabilities hold "
                f"for such images only. {_REMEDY}."
            )


def write_old_model(folder: Path, source: WeightSource) -> None:
    """Write the old network as a model folder, so that a resumed training does not need its source.

    Args:
        folder: Folder to write.
        source: The trained model.
    """
    assert source.saved is not None
    assert source.labels is not None
    parameters = sum(tensor.numel() for tensor in source.weights.tensors.values())
    saved = source.saved.replace(members=1, calibration=None)
    write_model_folder(folder, [source.weights.tensors], saved, source.labels, parameters)
