"""Groups of trained weights with their learning rates and weight decay, as fine-tuning of a backbone needs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from medseg.errors import ConfigError, did_you_mean
from medseg.models.base import Model
from medseg.train.settings import OptimizerSettings

BACKBONE = "backbone"
STEM = "stem"
_STAGES = re.compile(r"^(?:\w+\.)*?(?:layer(?P<one>\d+)|(?:stages|layers|blocks)\.(?P<zero>\d+))\.")
_STEMS = re.compile(r"^(?:swin\.)?(?:conv1|bn1|embedder|embeddings|patch_embed|pos_embed)(?:\.|$)")
_EMBEDDINGS = re.compile(r"(pos_embed|level_embed|relative_position_bias_table|position_embeddings)$")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the trained weights in groups for an optimiser.

    Weights of the model's published part have ``backbone_lr_factor`` times the rate of the others. A
    ``layerwise_lr_decay`` below 1 multiplies that rate again for each stage (in a vision transformer, each block; in a
    U-Net, each stage of decoder and encoder) from the head down to the stem, as in Bao et al. 2022 (BEiT,
    arXiv:2106.08254). ``weight_decay_on=kernels`` leaves norms, biases and embeddings without weight decay, as in Liu
    et al. 2021 (Swin, arXiv:2103.14030).

    Args:
        model: Model whose trained weights require gradients.
        settings: Learning rates and weight decay.

    Returns:
        Dicts with ``params``, ``lr``, ``lr_factor`` (of the scheduled rate) and ``weight_decay``, the highest rate
        first; a single group with the default settings.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    factors = _factors(model, settings)
    undecayed = _undecayed(model) if settings.weight_decay_on == "kernels" else frozenset()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name in undecayed else settings.weight_decay
            groups.setdefault((factors.get(name, 1.0), decay), []).append(parameter)
    return [
        {"params": found, "lr": settings.lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), found in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


class FrozenParts:
    """The part of a model that is not trained, always or in the first steps.

    While it is frozen, its batch norms keep their statistics and its dropout is off: it is a fixed function.

    Args:
        model: Model whose weights are frozen.
        names: ``backbone`` for the published part, ``backbone.stem``, ``backbone.stage1`` and so on for parts of it
            (in a vision transformer, a stage is a block), or any prefix of parameter names.
        steps: Steps after which the part is trained like the rest; None for never.

    Raises:
        ConfigError: A name fits no weight, or nothing would be left to train.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], steps: int | None = None) -> None:
        chosen = {parameter for name in names for parameter in _named(model, name)}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if chosen >= trained:
            raise ConfigError(
                f"train.freeze: found {', '.join(names)}, which is all of the model, expected a part of it. Leave "
                "something to train."
            )
        parameters = dict(model.named_parameters())
        self._steps = steps
        self._parameters = [parameters[name] for name in sorted(chosen & trained)]
        self._modules = [
            module
            for path, module in model.named_modules()
            if (own := [name for name in parameters if name.startswith(f"{path}.")])
            and chosen.issuperset(own)
        ]

        # Now, before anything that counts the weights to be trained, such as a distributed wrapper.
        if steps is None:
            self.apply(0)

    def apply(self, step: int) -> None:
        """Freeze or thaw for the step that follows `step` finished ones; to be called after ``model.train()``."""
        frozen = self._steps is None or step < self._steps
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for module in self._modules:
                module.eval()


def backbone_parameters(model: nn.Module) -> dict[str, int]:
    """Return the depth of each weight in the model's published part by name: 0 for the stem, then the stages."""
    part = model.pretrained_part if isinstance(model, Model) else None
    if part is None:
        return {}
    inside = {
        name: name.removeprefix(f"{part}.")
        for name, _ in model.named_parameters()
        if name.startswith(f"{part}.")
    }
    depths = {name: _depth(own) for name, own in inside.items()}
    deepest = max((depth for depth in depths.values() if depth is not None), default=0)
    # Other weights, such as those of a final norm, come after all stages.
    return {name: deepest if depth is None else depth for name, depth in depths.items()}


def _layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each weight by name, from the layer that sees the image; the heads are left out."""
    layers = model.layer_prefixes if isinstance(model, Model) else ()
    names = [name for name, _ in model.named_parameters()]
    used = [layer for layer in layers if any(name.startswith(f"{layer}.") for name in names)]
    return {name: depth for depth, layer in enumerate(used) for name in names if name.startswith(f"{layer}.")}


def _depth(name: str) -> int | None:
    found = _STAGES.match(name)
    if found is not None:
        return int(found["one"]) if found["one"] is not None else int(found["zero"]) + 1
    return 0 if _STEMS.match(name) else None


def _factors(model: nn.Module, settings: OptimizerSettings) -> dict[str, float]:
    """Return the factors of the learning rate of the weights in the published part, by name."""
    if settings.backbone_lr_factor == 1 and settings.layerwise_lr_decay == 1:
        return {}
    depths = backbone_parameters(model)
    if not depths and settings.backbone_lr_factor == 1:
        depths = _layer_depths(model)
    if not depths:
        raise ConfigError(
            f"train.optimizer.backbone_lr_factor: found a rate for the backbone, but {type(model).__name__} has none, expected a "
            "model that takes published weights. Leave backbone_lr_factor and layerwise_lr_decay out."
        )
    top = max(depths.values()) + 1
    return {
        name: settings.backbone_lr_factor * settings.layerwise_lr_decay ** (top - depth)
        for name, depth in depths.items()
    }


def _undecayed(model: nn.Module) -> frozenset[str]:
    """Return the names of norms, biases and embeddings."""
    embeddings = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    }
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() <= 1 or name in embeddings or _EMBEDDINGS.search(name)
    )


def _named(model: nn.Module, name: str) -> list[str]:
    """Return the parameters that one entry of ``train.freeze`` names."""
    every = [parameter for parameter, _ in model.named_parameters()]
    depths = backbone_parameters(model)
    words = {BACKBONE: list(depths)} if depths else {}
    for parameter, depth in depths.items():
        word = f"{BACKBONE}.{STEM}" if depth == 0 else f"{BACKBONE}.stage{depth}"
        words.setdefault(word, []).append(parameter)
    found = words.get(name) or [one for one in every if one == name or one.startswith(f"{name}.")]
    if not found:
        prefixes = dict.fromkeys(
            ".".join(one.split(".")[:n]) for one in every for n in range(1, one.count(".") + 1)
        )
        known = ", ".join(words or list(dict.fromkeys(one.split(".")[0] for one in every)))
        raise ConfigError(
            f"train.freeze: found {name!r}, which fits no weight of {type(model).__name__}."
            f"{did_you_mean(name, [*words, *prefixes])} Choose among {known}, or a prefix of parameter names."
        )
    return found
