"""Small options of every model, random parameters, and a loss for dense models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RESNET = {"depths": [1, 1, 1, 1], "width_per_group": 4}
_DETECTOR = {
    "box_head_width": 16,
    "mask_head_widths": [8],
    "sampled_proposals_per_image": 16,
    "sampled_anchors_per_image": 32,
    "proposals_train": 40,
    "proposals_test": 20,
}
_LEVELS = {"feature_channels": 16, "anchor_sizes": [[8], [16], [32], [64], [128]]}
_QUERIES = {
    "depths": [1, 1, 1, 1],
    "widths": [8, 16, 32, 64],
    "hidden_channels": 64,
    "num_queries": 7,
    "decoder_layers": 2,
    "decoder_width": 16,
    "attention_heads": 2,
}
_VIT = {
    "width": 24,
    "depth": 4,
    "drop_path": 0.1,
    "attention_heads": 2,
    "attention_window": 2,
    "pretrain_size": 32,
    "deform_heads": 2,
    "deform_ratio": 1.0,
    "prior_channels": 8,
}


def toy_options(name):
    """Options with which the model called `name` is built in milliseconds, of the same kind as by default."""
    if name.startswith("fcn"):
        return _RESNET
    if "former" in name:
        encoder = {"encoder_layers": 1, "encoder_width": 16, "num_points": 64} if "2former" in name else {}
        own = {"swin_heads": [1, 2, 2, 2], "window_size": 4} if "swin" in name else {"stem_channels": 8}
        return _QUERIES | encoder | own
    if "vit" in name:
        return _VIT | _DETECTOR | _LEVELS
    if name.startswith("mask_rcnn"):
        width = {"width_per_group": 1} if "resnext" in name else {}
        levels = _LEVELS if name.endswith("fpn") else {"anchor_sizes": [[8, 16, 32]]}
        block = {"block": "basic", "width_per_group": 64} if name.endswith("c4") else {}
        return _RESNET | width | _DETECTOR | levels | block
    if name.startswith("segresnet"):
        return {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
    return {"channels": [4, 8, 8]}


def randomise(network: nn.Module, *, kernels: bool = False) -> nn.Module:
    """Move parameters and running statistics away from their initial values, so that a lost or swapped one shows.

    Args:
        network: The network, changed in place.
        kernels: Whether to replace convolution kernels as well, so that those initialised with zeros have an effect.

    Returns:
        The network.
    """
    generator = torch.Generator().manual_seed(2)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(noise(tensor).abs() + 0.5)
        elif tensor.dim() == 1:
            tensor.add_(noise(tensor) * 0.2)
        elif tensor.dim() == 2:
            tensor.copy_(noise(tensor) * 0.3)
        elif tensor.dim() > 2 and kernels:
            tensor.copy_(noise(tensor) * 0.3 + 0.1)
    return network


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of logits `(N, K, *axes)` and classes `(N, 1, *axes)`."""
    return F.cross_entropy(logits, label[:, 0])
