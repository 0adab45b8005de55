"""Models: image → logits. Names and options come without torch; classes are imported when first touched."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Importing a config module enters its models in the catalog.
from medseg.models import fcn_config as _fcn_config  # noqa: F401
from medseg.models import mask_rcnn_config as _mask_rcnn_config  # noqa: F401
from medseg.models import maskformer_config as _maskformer_config  # noqa: F401
from medseg.models import unet_config as _unet_config  # noqa: F401
from medseg.models import vit_config as _vit_config  # noqa: F401
from medseg.models.catalog import (
    MODELS,
    ModelEntry,
    ModelOptions,
    build_model,
    list_models,
    parse_options,
    register,
)
from medseg.models.unet_config import (
    AttentionUNetConfig,
    AttentionUNetOptions,
    ResUNetConfig,
    ResUNetOptions,
    UNetConfig,
    UNetOptions,
)
from medseg.models.unet_fields import Stage
from medseg.models.unet_gates import GateOptions

if TYPE_CHECKING:
    from medseg.models.attention_unet import AttentionUNet2d, AttentionUNet3d
    from medseg.models.base import Model
    from medseg.models.slicewise import SliceWise
    from medseg.models.summary import summarize
    from medseg.models.unet import ResUNet2d, ResUNet3d, UNet2d, UNet3d

_LAZY = {
    "AttentionUNet2d": "attention_unet",
    "AttentionUNet3d": "attention_unet",
    "Model": "base",
    "ResUNet2d": "unet",
    "ResUNet3d": "unet",
    "SliceWise": "slicewise",
    "UNet2d": "unet",
    "UNet3d": "unet",
    "summarize": "summary",
}

__all__ = [
    "MODELS",
    "AttentionUNet2d",
    "AttentionUNet3d",
    "AttentionUNetConfig",
    "AttentionUNetOptions",
    "GateOptions",
    "Model",
    "ModelEntry",
    "ModelOptions",
    "ResUNet2d",
    "ResUNet3d",
    "ResUNetConfig",
    "ResUNetOptions",
    "SliceWise",
    "Stage",
    "UNet2d",
    "UNet3d",
    "UNetConfig",
    "UNetOptions",
    "build_model",
    "list_models",
    "parse_options",
    "register",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
