"""medseg: volumetric medical image segmentation, from files to evaluated predictions.

Names are imported when they are first used, so that ``import medseg`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.data.layouts import read_dataset as read_dataset
    from medseg.errors import MedsegError as MedsegError
    from medseg.evaluation import evaluate as evaluate
    from medseg.evaluation import evaluate_instances as evaluate_instances
    from medseg.experiment import Experiment as Experiment
    from medseg.geometry import Grid as Grid
    from medseg.inference.predictor import load as load
    from medseg.instances import Instances as Instances
    from medseg.io import read as read
    from medseg.io import read_labels as read_labels
    from medseg.io import write as write
    from medseg.labels import Labels as Labels
    from medseg.models.attention_unet import AttentionUNet2d as AttentionUNet2d
    from medseg.models.attention_unet import AttentionUNet3d as AttentionUNet3d
    from medseg.models.catalog import build_model as build_model
    from medseg.models.catalog import list_models as list_models
    from medseg.models.summary import summarize as summarize
    from medseg.models.unet import ResUNet2d as ResUNet2d
    from medseg.models.unet import ResUNet3d as ResUNet3d
    from medseg.models.unet import UNet2d as UNet2d
    from medseg.models.unet import UNet3d as UNet3d
    from medseg.models.unet_config import AttentionUNetConfig as AttentionUNetConfig
    from medseg.models.unet_config import UNetConfig as UNetConfig
    from medseg.planning.plan import plan as plan
    from medseg.viz.explore import show as show
    from medseg.volume import Volume as Volume

_HOMES = {
    "AttentionUNet2d": "medseg.models.attention_unet",
    "AttentionUNet3d": "medseg.models.attention_unet",
    "AttentionUNetConfig": "medseg.models.unet_config",
    "Experiment": "medseg.experiment",
    "Grid": "medseg.geometry",
    "Instances": "medseg.instances",
    "Labels": "medseg.labels",
    "MedsegError": "medseg.errors",
    "ResUNet2d": "medseg.models.unet",
    "ResUNet3d": "medseg.models.unet",
    "UNet2d": "medseg.models.unet",
    "UNet3d": "medseg.models.unet",
    "UNetConfig": "medseg.models.unet_config",
    "Volume": "medseg.volume",
    "build_model": "medseg.models.catalog",
    "evaluate": "medseg.evaluation",
    "evaluate_instances": "medseg.evaluation",
    "list_models": "medseg.models.catalog",
    "load": "medseg.inference.predictor",
    "plan": "medseg.planning.plan",
    "read": "medseg.io",
    "read_dataset": "medseg.data.layouts",
    "read_labels": "medseg.io",
    "show": "medseg.viz.explore",
    "summarize": "medseg.models.summary",
    "write": "medseg.io",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the type checker reads the imports above


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("medseg")
    if name not in _HOMES:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
