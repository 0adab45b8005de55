from .build import build_loss as build_loss
from .catalog import LossContext as LossContext
from .catalog import list_losses as list_losses
from .catalog import register_loss as register_loss

__all__ = [
    "LossContext",
    "build_loss",
    "list_losses",
    "register_loss",
]
