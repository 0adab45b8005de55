"""Models: image → logits. Names and options come without torch; classes are imported when first touched.

Importing a config module enters its models in the catalog.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.models import monai_config as _monai_config  # noqa: F401
from medseg.models.catalog import (
    MODELS,
    ModelEntry,
    ModelOptions,
    build_model,
    list_models,
    parse_options,
    register,
)
from medseg.models.fcn_config import FCNOptions
from medseg.models.mask_rcnn_config import MaskRCNNOptions, SingleLevelMaskRCNNOptions
from medseg.models.maskformer_config import Mask2FormerOptions, MaskFormerOptions
from medseg.models.pretrained_config import LoadedWeights
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
from medseg.models.vit_config import ViTMaskRCNNOptions

if TYPE_CHECKING:
    from medseg.models.attention_unet import AttentionUNet2d, AttentionUNet3d
    from medseg.models.base import Model
    from medseg.models.fcn import FCN
    from medseg.models.instances import Detections
    from medseg.models.mask_rcnn import MaskRCNN
    from medseg.models.maskformer import MaskTransformer
    from medseg.models.maskformer_outputs import Panoptic
    from medseg.models.multiplane import MultiPlane
    from medseg.models.slicewise import SliceWise
    from medseg.models.summary import summarize
    from medseg.models.unet import ResUNet2d, ResUNet3d, UNet2d, UNet3d

_LAZY = {
    "FCN": "fcn",
    "Detections": "instances",
    "MaskRCNN": "mask_rcnn",
    "MaskTransformer": "maskformer",
    "Panoptic": "maskformer_outputs",
    "AttentionUNet2d": "attention_unet",
    "AttentionUNet3d": "attention_unet",
    "Model": "base",
    "MultiPlane": "multiplane",
    "ResUNet2d": "unet",
    "ResUNet3d": "unet",
    "SliceWise": "slicewise",
    "UNet2d": "unet",
    "UNet3d": "unet",
    "summarize": "summary",
}

__all__ = [
    "FCN",
    "MODELS",
    "AttentionUNet2d",
    "AttentionUNet3d",
    "AttentionUNetConfig",
    "AttentionUNetOptions",
    "Detections",
    "FCNOptions",
    "GateOptions",
    "LoadedWeights",
    "Mask2FormerOptions",
    "MaskFormerOptions",
    "MaskRCNN",
    "MaskRCNNOptions",
    "MaskTransformer",
    "Model",
    "ModelEntry",
    "ModelOptions",
    "MultiPlane",
    "Panoptic",
    "ResUNet2d",
    "ResUNet3d",
    "ResUNetConfig",
    "ResUNetOptions",
    "SingleLevelMaskRCNNOptions",
    "SliceWise",
    "Stage",
    "UNet2d",
    "UNet3d",
    "UNetConfig",
    "UNetOptions",
    "ViTMaskRCNNOptions",
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
