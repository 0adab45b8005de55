"""Options for pretrained weights, shared by all models that have published ones. Free of torch."""

from __future__ import annotations

import re

from medseg.models.catalog import ModelOptions

COLOURS = ("red", "green", "blue")
"""Names of the channels of a colour image, in the order in which the networks of this package see them."""

TORCHVISION = re.compile(r"\w+_Weights\.\w+")
"""Name of torchvision's weights."""

HUB = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")
"""Name of a repository on the Hugging Face hub."""


def is_published_name(source: str) -> bool:
    """Return whether a source of weights is a name of torchvision or of the hub, and no path."""
    return bool(TORCHVISION.fullmatch(source) or source.startswith("hub:"))


class PretrainedOptions(ModelOptions):
    """The options that select pretrained weights.

    Attributes:
        weights: Source of the weights; None for fresh ones. A ``.safetensors`` or ``.pth`` file; a ``model_final_*.pkl`` of
            Detectron2; the folder of a repository of transformers; a torchvision name such as
            ``ResNet50_Weights.IMAGENET1K_V2``; ``hub:ORGANISATION/NAME`` or ``hub:ORGANISATION/NAME@COMMIT``
            on the Hugging Face hub; for vision transformers also a timm name such as ``deit_small_patch16_224``.
            Heads for a different number of classes keep fresh weights.
        download: Whether weights that are not in the local cache may be downloaded; a hub name then requires a
            commit.
    """

    weights: str | None = None
    download: bool = False
