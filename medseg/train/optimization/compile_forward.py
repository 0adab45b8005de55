"""Compilation of the forward pass of a network that is trained."""

from __future__ import annotations

from medseg.errors import ConfigError
from medseg.models.base import Model
from medseg.runtime.compilation import prepare_compilation


def compile_forward(model: Model) -> None:
    """Let a model compile its forward pass at the first call.

    The names of its weights stay, and copies of the model, such as the moving average, are not compiled.

    Args:
        model: The model, changed in place.

    Raises:
        ConfigError: The model computes its losses without the forward pass, or there is no C++ compiler.
    """
    if model.computes_own_losses:
        raise ConfigError(
            f"train.compile: found true for {type(model).__name__}, expected false, because models that compute their own losses "
            "do not train with the forward pass. Set train.compile=false."
        )
    prepare_compilation("train.compile")
    model.compile(dynamic=False)
