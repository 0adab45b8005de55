"""Random training patches of prepared cases, augmented and in the form that the model sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medseg.data.patches.augment import augment, draw_affine
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.extraction import Patch, PatchReader
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.patches.sampling import PatchSampler, sample_generator
from medseg.data.settings import Augmentation
from medseg.data.slices2d.slice_view import SliceView

Sample = dict[str, Tensor]


class PatchDataset(Dataset[Sample]):
    """Patches by index: `PatchSampler` chooses where, `PatchReader` reads what, `SliceView` defines how 2D models see it.

    Samples are ``{"image": (c, *spatial) float32, "label": (1, *spatial) int64}``. If every case has an instance map,
    they also hold ``"instances": (1, *spatial) int64``, the ids of the case with 0 where the label is background. With
    a first stage, the last channels of the image are 1 where its label map has label 1, 2, ... and 0 elsewhere.

    Args:
        sampler: Cases, patch size, batch size and share of foreground.
        length: Number of samples.
        seed: Seed of the experiment.
        stream: Name of the sequence, so that training and validation differ.
        augmentation: Augmentation settings, or None for none.
        view: View of a 2D model, whose samples lack the axis across the slices; None for a 3D model.
        first_stage: First stage of a cascade, whose label map every case must hold; None without a cascade.
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
    ) -> None:
        self.sampler = sampler
        self.length = length
        self.seed = seed
        self.stream = stream
        self.augmentation = augmentation
        self.view = view
        self.first_stage = first_stage
        self._reader = PatchReader(
            size=sampler.size if view is None else view.patch_size(sampler.size),
            with_instances=all(case.has_instances for case in sampler.cases),
            with_first_stage=first_stage is not None,
        )
        self._is_flat = view is not None and view.settings.thickness == 1
        if view is not None and augmentation is not None and not self._is_flat:
            self.augmentation = _in_plane(augmentation, view.axis)

    @property
    def cases(self) -> list[StoredCase]:
        """The cases that patches are sampled from."""
        return self.sampler.cases

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = sample_generator(self.seed, self.stream, index)
        case, centre = self.sampler.sample(index, rng)
        patch = self._reader.read(case, centre, self._random_matrix(rng))
        if self.view is not None and self._is_flat:
            across = self.view.axis + 1
            patch = patch.map(lambda tensor: tensor.squeeze(across))
        if self.augmentation is not None:
            patch = augment(patch, self.augmentation, rng)
        if self.first_stage is not None:
            patch = self.first_stage.append(patch, rng)
        return _as_sample(patch if self.view is None else _seen(patch, self.view))

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


def _as_sample(patch: Patch) -> Sample:
    """Return the tensors of a patch by name; instances only exist where the label is foreground."""
    sample = {"image": patch.image.contiguous(), "label": patch.label.contiguous()}
    if patch.instances is not None:
        sample["instances"] = patch.instances.contiguous() * (sample["label"] > 0)
    return sample
