"""Options for pretrained weights, shared by all models that have published ones. Free of torch."""

from __future__ import annotations

from medseg.models.catalog import ModelOptions


class PretrainedOptions(ModelOptions):
    """The options that select pretrained weights.

    Attributes:
        weights: Source of the weights; None for fresh ones. A ``.safetensors`` or ``.pth`` file; a torchvision name
            such as ``ResNet50_Weights.IMAGENET1K_V2``; ``hub:ORGANISATION/NAME`` or ``hub:ORGANISATION/NAME@COMMIT``
            on the Hugging Face hub; for vision transformers also a timm name such as ``deit_small_patch16_224``.
            Heads for a different number of classes keep fresh weights.
        download: Whether weights that are not in the local cache may be downloaded; a hub name then requires a
            commit.
    """

    weights: str | None = None
    download: bool = False
