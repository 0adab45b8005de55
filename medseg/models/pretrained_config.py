"""The options about weights that all models with published weights share. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class LoadedWeights:
    """What became of pretrained weights; printing it gives one sentence.

    Args:
        source: as it was written in the options.
        loaded: names of our tensors that were filled.
        adapted: those among them that had to be changed: kernels for other channels, position tables.
        fresh: names of our tensors that keep their fresh values.
        unused: names of the source's tensors that have no place in the model.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for what, names in (("adapted", self.adapted), ("left fresh", self.fresh), ("not used", self.unused)):
            if names:
                more = ", …" if len(names) > 3 else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{more})")
        return "; ".join(parts) + "."
