"""Random training patches of prepared cases, augmented and in the form that the model sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medseg.data.patches.augment import apply_changes
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.drawn_patch import DrawnPatch, PackedPatches
from medseg.data.patches.extraction import Patch, PatchReader
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.patches.random_changes import draw_affine, draw_changes
from medseg.data.patches.sampling import PatchSampler, sample_generator
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView

Sample = dict[str, Tensor]


class PatchDataset(Dataset[Sample | DrawnPatch]):
    """Patches by index: `PatchSampler` chooses where, `PatchReader` reads what, `SliceView` defines how 2D models see it.

    Samples are ``{"image": (c, *spatial) float32, "label": (1, *spatial) uint8}``, int32 if labels exceed a byte. If every
    case has an instance map, they also hold ``"instances": (1, *spatial) int32``, the ids of the case with 0 where the label
    is background. If a case has label probabilities, they hold those of the foreground classes, ``"probabilities": (k - 1,
    *spatial) float32``, which are 0 and 1 in other cases. With a first stage, the last channels of the image are 1 where its label map has label 1, 2, ... and 0
    elsewhere. With ``augment.device=device``, items are drawn patches instead, of which `finish_batch` makes samples.

    Args:
        sampler: Cases, patch size, batch size and share of foreground.
        length: Number of samples.
        seed: Seed of the experiment.
        stream: Name of the sequence, so that training and validation differ.
        augmentation: Augmentation settings, or None for none.
        view: View of a 2D model, whose samples lack the axis across the slices; None for a 3D model.
        first_stage: First stage of a cascade, whose label map every case must hold; None without a cascade.
        mask_rows: Which mask belongs to each channel, as returned by `medseg.data.preprocessing.normalize.mask_rows`. Voxels
            outside are 0 after the augmentation; without augmentation, the masks are not read.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        *,
        length: int,
        seed: int,
        stream: str,
        augmentation: Augmentation | None = None,
        view: SliceView | None = None,
        first_stage: FirstStageChannels | None = None,
        mask_rows: Sequence[int | None] = (),
    ) -> None:
        self.sampler = sampler
        self.length = length
        self.seed = seed
        self.stream = stream
        self.augmentation = augmentation
        self.view = view
        self.first_stage = first_stage
        soft = next((case.probabilities for case in sampler.cases if case.has_probabilities), None)
        self._foreground_classes = 0 if soft is None else len(soft)
        self._reader = PatchReader(
            size=sampler.size if view is None else view.patch_size(sampler.size),
            with_instances=all(case.has_instances for case in sampler.cases),
            with_first_stage=first_stage is not None,
            mask_rows=() if augmentation is None else tuple(mask_rows),
            with_probabilities=soft is not None,
        )
        # The smallest type that holds all labels, because samples travel between processes and to the device.
        are_bytes = all(case.label.dtype == np.uint8 for case in sampler.cases)
        self._label_type = torch.uint8 if are_bytes else torch.int32
        self._is_flat = view is not None and view.settings.thickness == 1
        if view is not None and augmentation is not None and not self._is_flat:
            self.augmentation = _in_plane(augmentation, view.axis)

    @property
    def cases(self) -> list[StoredCase]:
        """The cases that patches are sampled from."""
        return self.sampler.cases

    @property
    def spatial_size(self) -> tuple[int, ...]:
        """The voxels per axis that the model sees, in the order of the volume's axes."""
        size = list(self.sampler.size)
        if self.view is not None:
            del size[self.view.axis]
        return tuple(size)

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """The median voxel size in mm per axis that the model sees."""
        median = np.median([case.spacing for case in self.cases], axis=0).tolist()
        return tuple(median) if self.view is None else self.view.of_image(median)

    @property
    def sample_bytes(self) -> int:
        """The least number of bytes of a sample: its image as float32."""
        channels = self.sampler.cases[0].image.shape[0] if self.sampler.cases else 0
        return int(channels * np.prod(self.sampler.size) * 4)

    def case_ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Return the ids of the cases from which patches are cut, sorted, without repetitions.

        Args:
            indices: Numbers of samples.

        Returns:
            Ids.
        """
        drawn = (
            self.sampler.sample(index, sample_generator(self.seed, self.stream, index)) for index in indices
        )
        return tuple(sorted({case.id for case, _ in drawn}))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample | DrawnPatch:
        drawn = self.draw(index)
        return drawn if self.augments_on_device else self.finish(drawn)

    @property
    def augments_on_device(self) -> bool:
        """Whether items are drawn patches, to be finished on the device of the network, and not samples."""
        return self.augmentation is not None and self.augmentation.device == "device"

    def draw(self, index: int) -> DrawnPatch:
        """Return a patch before its augmentation; nothing random is left to be done.

        Args:
            index: Number of the sample.

        Returns:
            The voxels of the case, and the changes of the patch.
        """
        rng = sample_generator(self.seed, self.stream, index)
        case, centre = self.sampler.sample(index, rng)
        box = self._reader.read(case, centre, self._random_matrix(rng))
        changes = None
        if self.augmentation is not None:
            channels, size = box.image.shape[0], list(self._reader.size)
            if self.view is not None and self._is_flat:
                del size[self.view.axis]
            changes = draw_changes(self.augmentation, (channels, *size), rng, case.absent)
        if self.first_stage is None:
            return DrawnPatch(box, changes)
        # Here and not on the device, because its errors are found by searching the map.
        classes = box.first_stage_patch()
        if self.view is not None and self._is_flat:
            classes = classes.squeeze(self.view.axis + 1)
        if changes is not None and changes.flipped:
            classes = classes.flip(changes.flipped)
        return DrawnPatch(replace(box, first_stage=None), changes, self.first_stage.perturbed(classes, rng))

    def finish(self, drawn: DrawnPatch) -> Sample:
        """Return the sample of a drawn patch, augmented on the device that the patch is on.

        Args:
            drawn: Patch of this dataset.

        Returns:
            The sample.
        """
        patch = self._flat(drawn.box.patch())
        if drawn.changes is not None:
            patch = apply_changes(patch, drawn.changes)
        if self.first_stage is not None:
            assert drawn.first_stage is not None
            patch = replace(patch, image=self.first_stage.append(patch.image, drawn.first_stage))
        return self._as_sample(patch if self.view is None else _seen(patch, self.view))

    def finish_batch(self, batch: PackedPatches) -> Sample:
        """Return the samples of a batch of drawn patches as one batch, on the device of the patches."""
        samples = [self.finish(drawn) for drawn in batch.unpack()]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _flat(self, patch: Patch) -> Patch:
        """Return a patch without the axis across the slices, if the model sees single slices."""
        if self.view is None or not self._is_flat:
            return patch
        across = self.view.axis + 1
        return patch.map(lambda tensor: tensor.squeeze(across))

    def _random_matrix(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Return the random rotation and scaling of a patch: in the plane of its slices if the model sees slices."""
        if self.augmentation is None:
            return None
        across = self.augmentation.dummy_2d_axis if self.view is None else self.view.axis
        if across is None:
            return draw_affine(self.augmentation, 3, rng)
        in_plane = draw_affine(self.augmentation, 2, rng)
        if in_plane is None:
            return None
        axes = [axis for axis in range(3) if axis != across]
        matrix = np.eye(3)
        matrix[np.ix_(axes, axes)] = in_plane
        return matrix

    def _as_sample(self, patch: Patch) -> Sample:
        """Return the tensors of a patch by name; instances only exist where the label is foreground."""
        sample = {"image": patch.image.contiguous(), "label": patch.label.to(self._label_type).contiguous()}
        if self._foreground_classes:
            sample["probabilities"] = self._probabilities(patch)
        if patch.instances is not None:
            sample["instances"] = (patch.instances * (patch.label > 0)).int().contiguous()
        return sample

    def _probabilities(self, patch: Patch) -> Tensor:
        """Return the probabilities `(k - 1, *spatial)` of the foreground classes, of a label map if there are no others."""
        if patch.probabilities is not None:
            return patch.probabilities.contiguous()
        classes = torch.arange(1, self._foreground_classes + 1, device=patch.label.device)
        return (patch.label == classes.view(-1, *[1] * (patch.label.dim() - 1))).float().contiguous()


def _in_plane(augmentation: Augmentation, slice_axis: int) -> Augmentation:
    """Return the augmentation of a 2D patch for its thick slice: the mirror axes count the three axes of the box."""
    axes = [axis for axis in range(3) if axis != slice_axis]
    chosen = (0, 1) if augmentation.mirror_axes is None else augmentation.mirror_axes
    return augmentation.replace(mirror_axes=[axes[axis] for axis in chosen if axis < len(axes)])


def _seen(patch: Patch, view: SliceView) -> Patch:
    """Return a patch in the form that a 2D model sees: its channels, the middle of a thick slice, turned."""
    if view.settings.thickness > 1:
        image = view.channels_of_thick_slice(patch.image)
        patch = patch.map(lambda tensor: tensor.select(view.axis + 1, view.settings.neighbours))
    else:
        image = view.channels_of_values(patch.image[None])[0]
    patch = replace(patch, image=image)
    return patch if view.radiological_view is None else patch.map(view.radiological_view.turn)
