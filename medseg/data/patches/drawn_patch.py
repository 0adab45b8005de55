"""Patches on their way from a worker to the device that augments them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg.data.patches.extraction import Box
from medseg.data.patches.random_changes import Changes

_PARTS = ("image", "label", "instances", "first_stage", "noise", "masks", "probabilities")


@dataclass(frozen=True)
class DrawnPatch:
    """A patch whose place and random changes are drawn, but whose voxels are those of the case.

    Attributes:
        box: Voxels of the case.
        changes: Changes of the patch; None without augmentation.
        first_stage: Class indices `(1, *spatial)` of the first stage in the finished patch; None without a cascade.
    """

    box: Box
    changes: Changes | None = None
    first_stage: Tensor | None = None


class PackedPatches:
    """The drawn patches of a batch, with all voxels of one kind in one tensor.

    Boxes differ in size. One tensor per kind needs few file descriptors between processes, and few copies to the device.

    Args:
        parts: Tensor `(voxels,)` of all patches by kind.
        shapes: Shapes of the tensors of each patch by kind.
        patches: The patches, without their tensors.
    """

    def __init__(
        self,
        parts: dict[str, Tensor],
        shapes: Sequence[dict[str, torch.Size]],
        patches: Sequence[DrawnPatch],
    ) -> None:
        self._parts, self._shapes, self._patches = parts, shapes, patches

    @classmethod
    def pack(cls, patches: Sequence[DrawnPatch]) -> PackedPatches:
        """Return the batch of some patches, all with the same kinds of maps, except for probabilities."""
        tensors = [_tensors_of(patch) for patch in patches]
        parts = {
            name: torch.cat([found[name].flatten() for found in tensors if name in found])
            for name in _PARTS
            if any(name in found for found in tensors)
        }
        shapes = [{name: tensor.shape for name, tensor in found.items()} for found in tensors]
        return cls(parts, shapes, [_with_tensors(patch, {}) for patch in patches])

    def __len__(self) -> int:
        return len(self._patches)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the batch, one per kind."""
        return list(self._parts.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedPatches:
        """Return the batch with `change`, such as a copy to a device, applied to the tensor of each kind."""
        parts = {name: change(part) for name, part in self._parts.items()}
        return PackedPatches(parts, self._shapes, self._patches)

    def pin_memory(self) -> PackedPatches:  # pragma: gpu
        """Return the batch in pinned memory; the loader calls it."""
        return self.map(lambda part: part.pin_memory())

    def unpack(self) -> list[DrawnPatch]:
        """Return the patches; their tensors are views of those of the batch."""
        used, patches = dict.fromkeys(self._parts, 0), []
        for patch, shapes in zip(self._patches, self._shapes, strict=True):
            tensors = {}
            for name, shape in shapes.items():
                tensors[name] = self._parts[name].narrow(0, used[name], shape.numel()).view(shape)
                used[name] += shape.numel()
            patches.append(_with_tensors(patch, tensors))
        return patches


_NONE = torch.empty(0)


def _tensors_of(patch: DrawnPatch) -> dict[str, Tensor]:
    box, changes = patch.box, patch.changes
    found = {
        "image": box.image,
        "label": box.label,
        "instances": box.instances,
        "first_stage": patch.first_stage,
        "noise": None if changes is None else changes.noise,
        "masks": box.masks,
        "probabilities": box.probabilities,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _with_tensors(patch: DrawnPatch, tensors: dict[str, Tensor]) -> DrawnPatch:
    """Return a patch with other tensors; without those of the box, it only keeps what was drawn."""
    box = replace(
        patch.box,
        image=tensors.get("image", _NONE),
        label=tensors.get("label", _NONE),
        instances=tensors.get("instances"),
        first_stage=None,
        masks=tensors.get("masks"),
        probabilities=tensors.get("probabilities"),
    )
    changes = patch.changes
    if changes is not None:
        changes = replace(changes, noise=tensors.get("noise"))
    return DrawnPatch(box, changes, tensors.get("first_stage"))
