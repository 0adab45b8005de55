"""The background of masked normalisations is 0 again after the augmentation (nnU-Net's step after mirroring)."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from medseg.data.datasets.cases import Case
from medseg.data.patches.augment import apply_changes
from medseg.data.patches.drawn_patch import PackedPatches
from medseg.data.patches.extraction import Patch
from medseg.data.patches.prepare_cases import fill_store
from medseg.data.patches.random_changes import Changes
from medseg.data.preprocessing.normalize import Normalization, mask_rows, nonzero_mask
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import Augmentation
from medseg.labels.label_table import Labels
from tests.helpers.patches import patch_dataset

LABELS = Labels.from_names({"lesion": 1})
EVERYTHING = Augmentation(
    rotate_p=1, scale_p=1, noise_p=1, noise_std=(0.5, 0.5), blur_p=1, brightness_p=1, contrast_p=1, gamma_p=1
)
SHARED, OWN, ALL = (Normalization(method=name) for name in ("zscore_mask", "zscore_nonzero", "zscore"))


def head(folder, channels: int) -> Case:
    """A case of a ball in a background of 0, with a hole of 0 in it; the ball is larger in later channels."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[-16:16, -16:16, -16:16]
    radius = np.sqrt(x**2 + y**2 + z**2)
    files = []
    for channel in range(channels):
        image = np.where(radius < 10 + channel, rng.integers(50, 100, radius.shape), 0)
        image[14:18, 14:18, 14:18] = 0
        files.append(folder / f"channel_{channel}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), np.eye(4)), files[-1])
    label = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image((radius < 4).astype(np.uint8), np.eye(4)), label)
    return Case("head", tuple(files), label)


def stored(folder, channels, **settings):
    settings = Preprocessing(crop_to_nonzero=False, channels=channels, **settings)
    (case,) = fill_store(folder / "store", [head(folder, len(channels))], LABELS, settings)
    return case


def test_outside_voxels_are_0_after_the_changes_and_before_the_flip():
    image = torch.zeros(2, 4, 4, 4)
    outside = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    outside[0, 0] = True
    changes = Changes(noise=torch.ones(2, 4, 4, 4), noise_std=3.0, flipped=(1,))
    found = apply_changes(Patch(image, image[:1].long(), outside=outside), changes).image
    assert (found[0, -1] == 0).all()
    assert (found[0, :-1] == 3).all()
    assert (found[1] == 3).all()


def test_each_channel_has_its_mask():
    assert mask_rows([SHARED, ALL, OWN, SHARED, OWN]) == (0, None, 1, 0, 2)


def test_masks_are_those_of_the_normalisation(tmp_path):
    case = stored(tmp_path, (SHARED, ALL, OWN, SHARED))
    raw = np.stack([np.asarray(nibabel.load(file).dataobj) for file in head(tmp_path, 4).images])
    assert np.array_equal(case.masks[0], nonzero_mask(raw))
    assert np.array_equal(case.masks[1], raw[2] != 0)
    assert case.masks.shape[0] == 2
    assert case.masks[0][16, 16, 16] == 1  # a hole is inside the shared mask
    assert case.masks[1][16, 16, 16] == 0


def test_masks_are_resampled_like_label_maps(tmp_path):
    from medseg.volumes.resampling import AxisMap, resample_labels

    case = stored(tmp_path, (SHARED,), spacing=(1.7, 1.3, 0.8))
    raw = np.asarray(nibabel.load(tmp_path / "channel_0.nii.gz").dataobj)
    maps = [AxisMap.resize(32, n) for n in case.shape]
    expected = resample_labels(nonzero_mask(raw[None]).astype(np.uint8), maps, (1, 1, 1))
    assert np.array_equal(case.masks[0], expected)
    assert 0 < case.masks.mean() < 1


@pytest.mark.parametrize("channels", [(SHARED,), (OWN,), (SHARED, ALL), (ALL, OWN), (SHARED, OWN)])
@pytest.mark.parametrize("device", ["worker", "device"])
def test_the_background_is_0_in_augmented_patches(tmp_path, channels, device):
    """A corner of the patch is outside of the case, whatever the rotation."""
    case = stored(tmp_path, channels)
    settings = EVERYTHING.replace(device=device)
    dataset = patch_dataset([case], (48, 48, 48), augmentation=settings, mask_rows=mask_rows(channels))
    samples = [dataset[n] for n in range(3)]
    if device == "device":
        together = dataset.finish_batch(PackedPatches.pack(samples))
        samples = [{"image": image} for image in together["image"]]
    for sample in samples:
        for channel, image in zip(channels, sample["image"], strict=True):
            corners = image[:: image.shape[0] - 1, :: image.shape[1] - 1, :: image.shape[2] - 1]
            assert (corners == 0).all() == (channel is not ALL)
            share = float((image == 0).float().mean())
            assert (share > 0.8) == (channel is not ALL)
            assert image.unique().numel() > 1000


def test_nothing_changes_without_a_mask_or_without_augmentation(tmp_path):
    plain = stored(tmp_path, (ALL,))
    assert not (plain.folder / "masks.npy").exists()
    ones, twos = (
        patch_dataset([plain], (24, 24, 24), augmentation=EVERYTHING, mask_rows=rows)
        for rows in ((), (None,))
    )
    assert torch.equal(ones[0]["image"], twos[0]["image"])
    (tmp_path / "masked").mkdir()
    masked = stored(tmp_path / "masked", (SHARED,))
    (masked.folder / "masks.npy").unlink()
    validation = patch_dataset([masked], (24, 24, 24), mask_rows=(0,))
    assert torch.isfinite(validation[0]["image"]).all()
