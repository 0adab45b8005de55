"""The choices that a user makes for a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.errors import ConfigError
from medseg.models.catalog import MODELS
from medseg.planning.memory_budget import Device
from medseg.planning.nnunet.presets import Preset, PresetName, find_preset
from medseg.planning.propose import Kind
from medseg.train.settings import seconds_of


@dataclass(frozen=True)
class PlanOptions:
    """The choices for a plan; the defaults leave everything to the dataset and the machine.

    Attributes:
        preset: Size of the planned network: ``unet`` is nnU-Net's default; ``resenc-m``, ``resenc-l`` and
            ``resenc-xl`` are its residual encoders for GPUs of 8, 24 and 40 GB.
        dims: Number of spatial axes of the network, 2 or 3; None chooses 3, or 2 for a dataset of single slices. Without a
            GPU, None also chooses 2 for few thick slices, and a low resolution where patches would see too little.
        lowres: Whether to plan at a low resolution, for volumes that are much larger than a full-resolution patch.
        model: Name of a model in `medseg.list_models` that is trained with its default options instead of the
            planned U-Net.
        memory: Memory with a unit, such as ``"8GiB"``, of the GPU or, in a plan without a GPU, of the machine; None takes the
            preset's memory, or that of this machine's GPU if that is less, and 8 GB without a GPU.
        steps: Number of training steps; None takes 250,000 on a GPU, and as many as fit into `time` on a processor.
        device: ``cuda`` plans for a GPU and ``cpu`` for a processor, of whatever machine; None plans for the GPU of this
            machine, or for a processor if it has none.
        time: Time of the training, such as ``"20m"``; None takes 40 minutes on a processor, and counts steps on a GPU.
        start: Trained model to fine-tune: a model folder, a run, or a checkpoint of nnU-Net v2. Network, spacing,
            normalisation and patch are then its own. None for a new network.
        keep_old_labels: Whether the network also keeps the labels of `start` that the dataset does not have.

    Raises:
        ConfigError: A name is unknown, a value is out of range, or options contradict each other.

    >>> PlanOptions(dims=2).kind
    '2d'
    """

    preset: PresetName = "unet"
    dims: Literal[2, 3] | None = None
    lowres: bool = False
    model: str | None = None
    memory: str | None = None
    steps: int | None = None
    device: Device | None = None
    time: str | None = None
    start: str | Path | None = None
    keep_old_labels: bool = False

    def __post_init__(self) -> None:
        find_preset(self.preset)
        if self.dims not in (None, 2, 3):
            raise ConfigError(f"dims: found {self.dims}, expected 2 or 3. Correct it.")
        if self.model is not None and self.dims not in (None, needed := MODELS.get(self.model).dims):
            raise ConfigError(
                f"dims: found {self.dims}, expected {needed} because {self.model} has {needed}. Remove dims."
            )
        if self.lowres and self._dims == 2:
            raise ConfigError(
                "lowres: found it for a 2D network, expected a 3D one. Give either --lowres or --dims 2."
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps: found {self.steps}, expected at least 1. Correct it.")
        if self.device not in (None, "cpu", "cuda"):
            raise ConfigError(f"device: found {self.device!r}, expected cpu or cuda. Correct it.")
        self._check_time()
        self._check_start()
        if self.model is not None and self.preset != "unet":
            raise ConfigError(
                f"preset: found {self.preset} and the model {self.model}, expected one of them, because a preset "
                "plans its own model. Give either --model or --preset."
            )

    def _check_time(self) -> None:
        if self.time is None:
            return
        try:
            seconds_of(self.time)
        except ValueError as error:
            raise ConfigError(f"time: found {self.time!r}, {error}. Correct it.") from None
        if self.steps is not None:
            raise ConfigError(
                f"time: found {self.time} and {self.steps} steps, expected one of them. Remove --time or --steps."
            )

    def _check_start(self) -> None:
        """Raise `ConfigError` for choices that the model to start from has already made."""
        if self.start is None and self.keep_old_labels:
            raise ConfigError(
                "keep_old_labels: found it without a model, expected one whose labels are kept. Give the model with --from."
            )
        given = {"preset": self.preset != "unet", "model": self.model is not None}
        given |= {"dims": self.dims is not None, "lowres": self.lowres}
        found = [name for name, is_given in given.items() if is_given]
        if self.start is not None and found:
            raise ConfigError(
                f"{found[0]}: found it together with a model to start from, expected none, because the network is that of the "
                f"model. Remove --{found[0]} or --from."
            )

    @property
    def kind(self) -> Kind | None:
        """The kind of network, or None to choose it from the dataset."""
        if self.lowres:
            return "lowres"
        return None if self._dims is None else "2d" if self._dims == 2 else "3d"

    @property
    def chosen_preset(self) -> Preset:
        """The preset with the name `preset`."""
        return find_preset(self.preset)

    @property
    def _dims(self) -> int | None:
        return self.dims if self.model is None else MODELS.get(self.model).dims
