"""Options with which every model is small."""

from __future__ import annotations

_RESNET = {"depths": [1, 1, 1, 1], "width_per_group": 4}
_DETECTOR = {
    "box_width": 16,
    "mask_widths": [8],
    "boxes_sampled": 16,
    "anchors_sampled": 32,
    "proposals": [40, 20],
}
_LEVELS = {"feature_channels": 16, "anchor_sizes": [[8], [16], [32], [64], [128]]}
_QUERIES = {
    "depths": [1, 1, 1, 1],
    "widths": [8, 16, 32, 64],
    "hidden_channels": 64,
    "queries": 7,
    "decoder_layers": 2,
    "decoder_width": 16,
    "attention_heads": 2,
}
_VIT = {
    "width": 24,
    "depth": 4,
    "drop_path": 0.1,
    "heads": 2,
    "window": 2,
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
        encoder = {"encoder_layers": 1, "encoder_width": 16, "points": 64} if "2former" in name else {}
        own = {"heads": [1, 2, 2, 2], "window_size": 4} if "swin" in name else {"stem_channels": 8}
        return _QUERIES | encoder | own
    if "vit" in name:
        return _VIT | _DETECTOR | _LEVELS
    if name.startswith("mask_rcnn"):
        width = {"width_per_group": 1} if "resnext" in name else {}
        levels = _LEVELS if name.endswith("fpn") else {"anchor_sizes": [[8, 16, 32]]}
        block = {"block": "basic", "width_per_group": 64} if name.endswith("c4") else {}
        return _RESNET | width | _DETECTOR | levels | block
    return {"channels": [4, 8, 8]}
