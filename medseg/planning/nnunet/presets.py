"""Presets, and the memory of a U-Net's feature maps, by which patch and batch are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from medseg.errors import ConfigError, did_you_mean
from medseg.planning.nnunet.topology import Topology

PresetName = Literal["unet", "resenc", "resenc-m", "resenc-l", "resenc-xl"]
_FIRST_WIDTH = 32
_WIDEST = {2: 512, 3: 320}
REFERENCE_BATCH = {2: 12, 3: 2}
LEAST_BATCH = 2


@dataclass(frozen=True)
class Preset:
    """A size of network and the memory to plan for.

    Attributes:
        name: Name, as in ``--preset``.
        residual: Whether the encoder is nnU-Net's residual encoder instead of the plain one.
        maps_2d: Feature-map values of one image that fill `memory_gib` in 2D (the batch is `REFERENCE_BATCH`).
        maps_3d: The same in 3D.
        memory_gib: GPU memory in GiB that the preset is meant for.
        voxel_share: Largest fraction of the dataset's voxels in one batch.
        encoder_blocks: Convolutions (plain) or residual blocks per stage; the last number repeats.
        decoder_blocks: Convolutions per decoder level.
    """

    name: PresetName
    residual: bool
    maps_2d: float
    maps_3d: float
    memory_gib: float
    voxel_share: float
    encoder_blocks: tuple[int, ...]
    decoder_blocks: int

    def maps_within(self, dims: int, memory_gib: float | None) -> float:
        """Return the feature-map values of one image that fill a memory.

        Args:
            dims: Number of spatial axes, 2 or 3.
            memory_gib: Memory in GiB; None takes the preset's own.

        Returns:
            Number of values.
        """
        maps = self.maps_2d if dims == 2 else self.maps_3d
        return maps * (self.memory_gib if memory_gib is None else memory_gib) / self.memory_gib

    def least_share(self, dims: int) -> float:
        """Return the smallest batch as a share of the batch whose feature maps are compared with the memory.

        Args:
            dims: Number of spatial axes, 2 or 3.

        Returns:
            The share. The residual presets compare a single image, regardless of the reference batch.
        """
        return 1.0 if self.residual else LEAST_BATCH / REFERENCE_BATCH[dims]

    def blocks(self, num_stages: int) -> tuple[int, ...]:
        """Return the convolutions or residual blocks of each encoder stage.

        Args:
            num_stages: Number of stages.

        Returns:
            One number per stage.
        """
        last = len(self.encoder_blocks) - 1
        return tuple(self.encoder_blocks[min(stage, last)] for stage in range(num_stages))


_RESIDUAL_BLOCKS = (1, 3, 4, 6)
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("unet", False, 85e6, 560e6, 8, 0.05, (2,), 2),
        Preset("resenc", True, 135e6, 680e6, 8, 0.05, _RESIDUAL_BLOCKS, 1),
        Preset("resenc-m", True, 135e6, 680e6, 8, 1.0, _RESIDUAL_BLOCKS, 1),
        Preset("resenc-l", True, 380e6, 2100e6, 24, 1.0, _RESIDUAL_BLOCKS, 1),
        Preset("resenc-xl", True, 560e6, 3600e6, 40, 1.0, _RESIDUAL_BLOCKS, 1),
    )
}


def find_preset(name: str) -> Preset:
    """Return the preset called `name`, or raise a `ConfigError` with the most similar known name.

    Args:
        name: Name of the preset.

    Returns:
        The preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preset: found {name!r}, expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)} Correct it."
        )
    return PRESETS[name]


def widths(num_stages: int, dims: int) -> tuple[int, ...]:
    """Return the channels per stage: 32, doubled at each stage, up to 320 in 3D and 512 in 2D.

    Args:
        num_stages: Number of stages.
        dims: Number of spatial axes, 2 or 3.

    Returns:
        One number per stage.
    """
    return tuple(min(_WIDEST[dims], _FIRST_WIDTH * 2**stage) for stage in range(num_stages))


def feature_map_values(topology: Topology, num_labels: int, preset: Preset) -> int:
    """Return the number of values that the convolutions of a network output for one patch, nnU-Net's measure of memory.

    Norms, activations and the input are left out; they grow in proportion.

    Args:
        topology: Topology of the network.
        num_labels: Number of labels, including background.
        preset: Plain or residual network, and its numbers of blocks.

    Returns:
        Number of values.
    """
    sizes = topology.sizes()
    channels = widths(topology.num_stages, len(topology.patch))
    values = [width * prod(size) for width, size in zip(channels, sizes, strict=True)]
    blocks = preset.blocks(topology.num_stages)
    if preset.residual:
        encoder = channels[0] * prod(topology.patch)  # the stem
        for stage, (count, value) in enumerate(zip(blocks, values, strict=True)):
            strided = any(s != 1 for s in topology.strides[stage])
            widened = stage > 0 and channels[stage] != channels[stage - 1]
            encoder += (2 * count + (strided or widened)) * value
    else:
        encoder = sum(count * value for count, value in zip(blocks, values, strict=True))
    decoder = sum((preset.decoder_blocks + 1) * value for value in values[:-1])
    head = num_labels * prod(sizes[0]) if topology.num_stages > 1 else 0
    return encoder + decoder + head
