from .base import LoadedWeights as LoadedWeights
from .base import Model as Model
from .catalog import MODELS as MODELS
from .catalog import ModelEntry as ModelEntry
from .catalog import ModelOptions as ModelOptions
from .catalog import build_model as build_model
from .catalog import list_models as list_models
from .catalog import parse_options as parse_options
from .catalog import register as register
from .detections import Detections as Detections
from .fcn.config import FCNOptions as FCNOptions
from .fcn.network import FCN as FCN
from .mask_rcnn.config import MaskRCNNOptions as MaskRCNNOptions
from .mask_rcnn.config import SingleLevelMaskRCNNOptions as SingleLevelMaskRCNNOptions
from .mask_rcnn.config import ViTMaskRCNNOptions as ViTMaskRCNNOptions
from .mask_rcnn.network import MaskRCNN as MaskRCNN
from .maskformer.config import Mask2FormerOptions as Mask2FormerOptions
from .maskformer.config import MaskFormerOptions as MaskFormerOptions
from .maskformer.network import MaskTransformer as MaskTransformer
from .maskformer.outputs import Panoptic as Panoptic
from .summary import summarize as summarize
from .unet.attention import AttentionUNet2d as AttentionUNet2d
from .unet.attention import AttentionUNet3d as AttentionUNet3d
from .unet.config import AttentionUNetOptions as AttentionUNetOptions
from .unet.config import InstanceUNetOptions as InstanceUNetOptions
from .unet.config import ResUNetOptions as ResUNetOptions
from .unet.config import UNetOptions as UNetOptions
from .unet.gate import GateOptions as GateOptions
from .unet.instance_unet import InstanceUNet2d as InstanceUNet2d
from .unet.instance_unet import InstanceUNet3d as InstanceUNet3d
from .unet.network import ResUNet2d as ResUNet2d
from .unet.network import ResUNet3d as ResUNet3d
from .unet.network import UNet2d as UNet2d
from .unet.network import UNet3d as UNet3d
from .unet.network_config import AttentionUNetConfig as AttentionUNetConfig
from .unet.network_config import InstanceUNetConfig as InstanceUNetConfig
from .unet.network_config import ResUNetConfig as ResUNetConfig
from .unet.network_config import UNetConfig as UNetConfig
from .unet.stage import Stage as Stage
from .volumetric.multiplane import MultiPlane as MultiPlane
from .volumetric.slicewise import SliceWise as SliceWise

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
    "InstanceUNet2d",
    "InstanceUNet3d",
    "InstanceUNetConfig",
    "InstanceUNetOptions",
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
