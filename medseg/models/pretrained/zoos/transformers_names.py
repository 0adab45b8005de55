"""MaskFormer and Mask2Former of the transformers package, as their repositories on the Hugging Face hub store them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from medseg.errors import ModelError
from medseg.models.pretrained.zoos.published_model import PixelStatistics, PublishedModel, count_in

ZOO = "transformers"

ENCODER = "network.model.pixel_level_module.encoder."
"""Place of the backbone in medseg's network."""

_MODULE = "network.model.transformer_module."
_PIXELS = "network.model.pixel_level_module."
_LAYERS = rf"^({re.escape(_MODULE)}decoder\.layers\.\d+\.)"

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

SWIN_RENAMES: Renames = (
    (rf"^({ENCODER})(encoder\.layers|embeddings\.(patch_embeddings|norm))\.", r"\1swin.\2."),
    (r"attention\.self\.(query|key|value)\.", lambda m: f"attention.{m[1][0]}_proj."),
    (r"attention\.self\.(relative_position_bias_table)", r"attention.relative_position_bias.\1"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"(swin\..*)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"(swin\..*)output\.dense\.", r"\1mlp.fc2."),
)
"""Names of a Swin transformer in older releases, and in the present one."""

MASKFORMER_RENAMES: Renames = (
    (rf"{_LAYERS}(fc[12])\.", r"\1mlp.\2."),
    (rf"{_LAYERS}(self_attn|encoder_attn)\.out_proj\.", r"\1\2.o_proj."),
)
"""Names of MaskFormer's decoder in older releases, and in the present one."""

_LEFT = (
    (r".*relative_position_index", "computed from model.window_size"),
    (r".*encoder\.(swin\.)?layernorm\.(weight|bias)", "norm that the network does not use"),
)


def is_mask_transformer(names: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of a MaskFormer or Mask2Former of transformers."""
    needed = {"class_predictor.weight", "model.transformer_module.queries_embedder.weight"}
    return needed <= names.keys()


def from_transformers(
    state: Mapping[str, Tensor],
    classes: tuple[str, ...] | None,
    statistics: PixelStatistics,
    attention_heads: int | None = None,
) -> PublishedModel:
    """Return a MaskFormer or Mask2Former by the names of medseg, from the present or an older release.

    Args:
        state: Tensors by the names of transformers.
        classes: Names of the classes in the configuration of the repository; None without it.
        statistics: Normalisation of its images.
        attention_heads: Heads of the decoder, which do not follow from the tensors; None if they are not known.

    Returns:
        The model.

    Raises:
        ModelError: It is a MaskFormer on a Swin transformer, which medseg does not offer.
    """
    newer = "model.transformer_module.level_embed.weight" in state
    renames = SWIN_RENAMES if newer else MASKFORMER_RENAMES
    tensors, left = {}, {}
    for name, tensor in state.items():
        why = next((why for pattern, why in _LEFT if re.fullmatch(pattern, name)), None)
        if why is not None:
            left[name] = why
            continue
        ours = f"network.{name}"
        for pattern, replacement in renames:
            ours = re.sub(pattern, replacement, ours)
        tensors[ours] = tensor
    swin = f"{ENCODER}embedder.embedder.convolution.weight" not in tensors
    if swin and not newer:
        raise ModelError(
            "found a MaskFormer on a Swin transformer, expected one on a ResNet. Choose a repository such as "
            "facebook/maskformer-resnet50-ade, or a Mask2Former, which medseg also offers on Swin transformers."
        )
    options = (_swin(tensors) if swin else _resnet(tensors)) | _transformer(tensors, newer=newer)
    if attention_heads is not None:
        options["attention_heads"] = attention_heads
    outputs = tensors["network.class_predictor.weight"].shape[0] - 1  # without "no object"
    stem = (
        "swin.embeddings.patch_embeddings.projection.weight"
        if swin
        else "embedder.embedder.convolution.weight"
    )
    return PublishedModel(
        zoo=ZOO,
        model=f"{'mask2former' if newer else 'maskformer'}_{_backbone_name(options)}",
        options=options,
        tensors=tensors,
        stems=(ENCODER + stem,),
        statistics=statistics,
        classes=classes if classes and len(classes) == outputs else None,
        has_background=False,
        left=left,
    )


def _transformer(tensors: Mapping[str, Tensor], *, newer: bool) -> dict[str, Any]:
    queries, width = tensors[f"{_MODULE}queries_embedder.weight"].shape
    layers = f"{_MODULE}decoder.layers."
    depth = count_in(tensors, rf"{re.escape(layers)}(\d+)\.")
    inner = tensors.get(f"{layers}0.fc1.weight", tensors.get(f"{layers}0.mlp.fc1.weight"))
    assert inner is not None
    options = {
        "num_queries": queries,
        "hidden_channels": width,
        "decoder_layers": depth + 1
        if newer
        else depth,  # Mask2Former counts the prediction before its first layer
        "decoder_width": len(inner),
    }
    if newer:
        encoder = f"{_PIXELS}decoder.encoder.layers."
        options["encoder_layers"] = count_in(tensors, rf"{re.escape(encoder)}(\d+)\.")
        options["encoder_width"] = len(tensors[f"{encoder}0.fc1.weight"])
    return options


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = f"{ENCODER}encoder.stages."
    bottleneck = f"{stages}0.layers.0.layer.2.convolution.weight" in tensors
    last = 2 if bottleneck else 1
    return {
        "backbone": "resnet",
        "block": "bottleneck" if bottleneck else "basic",
        "depths": tuple(count_in(tensors, rf"{re.escape(stages)}{i}\.layers\.(\d+)\.") for i in range(4)),
        "widths": tuple(
            len(tensors[f"{stages}{i}.layers.0.layer.{last}.convolution.weight"]) for i in range(4)
        ),
        "stem_channels": len(tensors[f"{ENCODER}embedder.embedder.convolution.weight"]),
    }


def _swin(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = f"{ENCODER}swin.encoder.layers."
    tables = [
        tensors[f"{layers}{i}.blocks.0.attention.relative_position_bias.relative_position_bias_table"]
        for i in range(4)
    ]
    return {
        "backbone": "swin",
        "depths": tuple(count_in(tensors, rf"{re.escape(layers)}{i}\.blocks\.(\d+)\.") for i in range(4)),
        "widths": tuple(len(tensors[f"{layers}{i}.blocks.0.layernorm_before.weight"]) for i in range(4)),
        "swin_heads": tuple(table.shape[1] for table in tables),
        "window_size": (math.isqrt(tables[0].shape[0]) + 1) // 2,
    }


def _backbone_name(options: Mapping[str, Any]) -> str:
    """Return the end of the registered name whose backbone is the most similar one; the options say the rest."""
    deep = options["depths"][2] > 6
    if options["backbone"] == "resnet":
        small = "18" if options["depths"][2] < 3 else "34"
        return f"resnet_{small if options['block'] == 'basic' else '101' if deep else '50'}"
    return "swin_" + {128: "base", 192: "large"}.get(options["widths"][0], "small" if deep else "tiny")
