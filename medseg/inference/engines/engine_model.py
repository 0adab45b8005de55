"""A network that another engine runs in the place of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medseg.errors import ConfigError, ModelError
from medseg.inference.engines.runtimes import Run, run_int8, run_with_onnx, run_with_openvino
from medseg.models.base import Model

Engine = Literal["torch", "onnx", "openvino"]


class EngineModel(Model):
    """A network with the logits of another engine; only for prediction on the processor.

    The engine is started for each size of images that occurs, usually one.

    Args:
        model: The network.
        engine: ``"onnx"`` or ``"openvino"``.
        int8: Folder of the 8-bit network, which OpenVINO runs instead; None for float32.

    Attributes:
        original: The network in PyTorch.

    Raises:
        ModelError: Packages are missing, or the engine cannot run the network (in the first call with a new size).
    """

    def __init__(self, model: Model, engine: Engine, int8: Path | None = None) -> None:
        super().__init__(
            spatial_dims=model.spatial_dims,
            in_channels=model.in_channels,
            num_classes=model.num_classes,
            divisor=model.divisor,
        )
        self._original = (model,)  # in a tuple, so that it is no submodule and is neither moved nor converted
        self._engine, self._int8 = engine, int8
        self._runs: dict[tuple[int, ...], Run] = {}

    @property
    def original(self) -> Model:
        """The network in PyTorch."""
        return self._original[0]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (n k *spatial) of images (n c *spatial), both float32 on the processor."""
        size = tuple(image.shape[2:])
        if size not in self._runs:
            with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
                self._runs[size] = self._start(size)
        return torch.from_numpy(self._runs[size](np.ascontiguousarray(image.numpy(), np.float32)))

    def _start(self, size: tuple[int, ...]) -> Run:
        if self._int8 is not None:
            return run_int8(self._int8, size)
        return (run_with_onnx if self._engine == "onnx" else run_with_openvino)(self.original, size)


def on_engine(model: Model, engine: Engine, precision: str, device: torch.device) -> Model:
    """Return a network as the engine of the prediction settings runs it.

    Args:
        model: The network, as `load_model` returns it.
        engine: The engine.
        precision: ``predict.precision``, whose ``int8`` needs the 8-bit network of the model folder.
        device: Device to predict on.

    Returns:
        The network itself for PyTorch, else an `EngineModel`.

    Raises:
        ConfigError: The engine does not run on the device.
        ModelError: The model folder has no 8-bit network.
    """
    model = model.original if isinstance(model, EngineModel) else model
    if engine == "torch":
        return model
    if device.type != "cpu":
        raise ConfigError(
            f"engine: found {engine} on {device}, expected a processor. Predict with device=cpu, or with engine=torch."
        )
    int8 = model.int8_folder if precision == "int8" else None
    if precision == "int8" and int8 is None:
        raise ModelError(
            "precision: found int8, but the model folder holds no 8-bit network. Write one with: medseg quantize MODEL --data "
            "DATASET, or predict with precision=float32."
        )
    return EngineModel(model, engine, int8)
