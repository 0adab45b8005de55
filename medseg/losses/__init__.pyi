from .build import LOSSES as LOSSES
from .build import build_loss as build_loss

__all__ = [
    "LOSSES",
    "build_loss",
]
