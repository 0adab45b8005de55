"""Options with which every model is small."""

from __future__ import annotations

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
