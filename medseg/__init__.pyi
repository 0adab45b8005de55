from .data.datasets.layouts import read_dataset as read_dataset
from .errors import MedsegError as MedsegError
from .evaluation.entry_points import evaluate as evaluate
from .evaluation.instances.pairs import evaluate_instances as evaluate_instances
from .experiment.experiment import Experiment as Experiment
from .inference.cohort.predict_folder import estimate as estimate
from .inference.cohort.predict_folder import predict as predict
from .inference.predictor import load as load
from .io.files import read as read
from .io.files import read_labels as read_labels
from .io.files import write as write
from .labels.instances import Instances as Instances
from .labels.label_table import Labels as Labels
from .models.catalog import build_model as build_model
from .models.catalog import list_models as list_models
from .models.summary import summarize as summarize
from .models.unet.attention import AttentionUNet2d as AttentionUNet2d
from .models.unet.attention import AttentionUNet3d as AttentionUNet3d
from .models.unet.network import ResUNet2d as ResUNet2d
from .models.unet.network import ResUNet3d as ResUNet3d
from .models.unet.network import UNet2d as UNet2d
from .models.unet.network import UNet3d as UNet3d
from .models.unet.network_config import AttentionUNetConfig as AttentionUNetConfig
from .models.unet.network_config import UNetConfig as UNetConfig
from .planning.plan_dataset import plan as plan
from .planning.plan_options import PlanOptions as PlanOptions
from .viz.explore import show as show
from .volumes.grid import Grid as Grid
from .volumes.volume import Volume as Volume

__all__ = [
    "AttentionUNet2d",
    "AttentionUNet3d",
    "AttentionUNetConfig",
    "Experiment",
    "Grid",
    "Instances",
    "Labels",
    "MedsegError",
    "PlanOptions",
    "ResUNet2d",
    "ResUNet3d",
    "UNet2d",
    "UNet3d",
    "UNetConfig",
    "Volume",
    "build_model",
    "estimate",
    "evaluate",
    "evaluate_instances",
    "list_models",
    "load",
    "plan",
    "predict",
    "read",
    "read_dataset",
    "read_labels",
    "show",
    "summarize",
    "write",
]

__version__: str
