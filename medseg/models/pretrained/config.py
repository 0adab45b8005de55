"""The options about weights that all models with published weights share. Free of torch."""

from __future__ import annotations

from medseg.models.catalog import ModelOptions


class PretrainedOptions(ModelOptions):
    """Where the weights come from.

    Args:
        weights: None for fresh weights; a ``.safetensors`` or ``.pth`` file; a name of torchvision's such as
            ``ResNet50_Weights.IMAGENET1K_V2``; ``hub:ORGANISATION/NAME`` or ``hub:ORGANISATION/NAME@COMMIT`` of
            the Hugging Face hub; for a vision transformer also a name of timm's such as
            ``deit_small_patch16_224``. Heads for other classes stay fresh.
        download: allow the network where weights are not in the local cache; a hub name then needs its commit.
    """

    weights: str | None = None
    download: bool = False
