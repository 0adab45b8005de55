"""Write the tables of names and shapes of published models, from what the public sources say; medseg is not imported.

    python tests/models/pretrained/zoos/write_tables.py

Each table states its sources with their commits. In a line, ``{0..3}`` and ``{weight,bias}`` stand for several names of the
same shape. Tables of torchvision and transformers are taken from the networks that these packages build on tensors without
storage, renamed to the names in the published files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "tables"

DETECTRON2 = (
    "https://github.com/facebookresearch/detectron2 at 02b5c4e295e990042a714712c21dc79b731e8833: detectron2/modeling/backbone/"
    "{resnet,fpn}.py, proposal_generator/rpn.py, roi_heads/{roi_heads,box_head,mask_head,fast_rcnn}.py, configs/Base-RCNN-*.yaml, "
    "configs/COCO-InstanceSegmentation/mask_rcnn_*.yaml, config/defaults.py"
)
VIT_ADAPTER = (
    "https://github.com/czczup/ViT-Adapter at fd64a5190f9f4530e8e5961cc87b2a3ad591190b: detection/mmdet_custom/models/backbones/"
    "{vit_adapter,vit_baseline,adapter_modules,base/vit}.py, necks/channel_mapper.py, detection/ops/modules/ms_deform_attn.py, "
    "detection/configs/mask_rcnn; https://github.com/open-mmlab/mmdetection: mmdet/models/necks/fpn.py at "
    "0492e5c844f7c661ba4aa562ad585f17e209b4c3, dense_heads/rpn_head.py at 006c106415fc038bf218de6b5c38e32fdc618570, "
    "roi_heads/bbox_heads/convfc_bbox_head.py at 021c20df7f6b7e7b2e49a8c2975360d2d38c9a1c, "
    "roi_heads/mask_heads/fcn_mask_head.py at 00e97308fa85d98e9049a312cee5f9a451a3f44b"
)

Shape = tuple[int, ...]
Rows = Iterator[tuple[str, Shape]]

CLASSES = 80
WIDTHS = (256, 512, 1024, 2048)


def conv(name: str, out: int, into: int, kernel: int, *, bias: bool = False) -> Rows:
    """Yield a convolution."""
    yield f"{name}.weight", (out, into, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def linear(name: str, out: int, into: int) -> Rows:
    """Yield a linear layer."""
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int, *, running: bool = False, counted: bool = False) -> Rows:
    """Yield a norm, with running statistics and the count of batches if it has them."""
    for part in ("weight", "bias", *(("running_mean", "running_var") if running else ())):
        yield f"{name}.{part}", (width,)
    if counted:
        yield f"{name}.num_batches_tracked", ()


def residual_stage(place: str, blocks: int, into: int, inner: int, out: int, groups: int) -> Rows:
    """Yield a stage of bottlenecks of Detectron2, whose norms are frozen."""
    for block in range(blocks):
        here = f"{place}.{block}"
        before = into if block == 0 else out
        if block == 0:
            yield from conv(f"{here}.shortcut", out, before, 1)
            yield from norm(f"{here}.shortcut.norm", out, running=True)
        sizes = ((inner, before, 1), (inner, inner // groups, 3), (out, inner, 1))
        for number, (width, channels, kernel) in enumerate(sizes, start=1):
            yield from conv(f"{here}.conv{number}", width, channels, kernel)
            yield from norm(f"{here}.conv{number}.norm", width, running=True)


def detectron2(form: str, depths: tuple[int, ...], groups: int = 1, width_per_group: int = 64) -> Rows:
    """Yield Mask R-CNN of Detectron2 in the form ``fpn``, ``c4`` or ``dc5``."""
    bottom = "backbone.bottom_up" if form == "fpn" else "backbone"
    yield from conv(f"{bottom}.stem.conv1", 64, 3, 7)
    yield from norm(f"{bottom}.stem.conv1.norm", 64, running=True)
    for stage, (blocks, out) in enumerate(zip(depths, WIDTHS, strict=True)):
        inner = groups * width_per_group * 2**stage
        place = "roi_heads.res5" if form == "c4" and stage == 3 else f"{bottom}.res{stage + 2}"
        yield from residual_stage(place, blocks, 64 if stage == 0 else out // 2, inner, out, groups)
    if form == "fpn":
        for level, width in enumerate(WIDTHS, start=2):
            yield from conv(f"backbone.fpn_lateral{level}", 256, width, 1, bias=True)
            yield from conv(f"backbone.fpn_output{level}", 256, 256, 3, bias=True)
    channels = {"fpn": 256, "c4": 1024, "dc5": 2048}[form]
    anchors = 3 if form == "fpn" else 15
    yield from conv("proposal_generator.rpn_head.conv", channels, channels, 3, bias=True)
    yield from conv("proposal_generator.rpn_head.objectness_logits", anchors, channels, 1, bias=True)
    yield from conv("proposal_generator.rpn_head.anchor_deltas", anchors * 4, channels, 1, bias=True)
    pooled = 2048 if form == "c4" else 1024
    if form != "c4":
        yield from linear("roi_heads.box_head.fc1", 1024, channels * 49)
        yield from linear("roi_heads.box_head.fc2", 1024, 1024)
    yield from linear("roi_heads.box_predictor.cls_score", CLASSES + 1, pooled)
    yield from linear("roi_heads.box_predictor.bbox_pred", CLASSES * 4, pooled)
    if form != "c4":
        for number in range(1, 5):
            yield from conv(
                f"roi_heads.mask_head.mask_fcn{number}", 256, channels if number == 1 else 256, 3, bias=True
            )
    yield "roi_heads.mask_head.deconv.weight", (2048 if form == "c4" else 256, 256, 2, 2)
    yield "roi_heads.mask_head.deconv.bias", (256,)
    yield from conv("roi_heads.mask_head.predictor", CLASSES, 256, 1, bias=True)


def deformable(name: str, width: int, heads: int, levels: int, inner: int) -> Rows:
    """Yield deformable attention with four points."""
    yield from linear(f"{name}.sampling_offsets", heads * levels * 4 * 2, width)
    yield from linear(f"{name}.attention_weights", heads * levels * 4, width)
    yield from linear(f"{name}.value_proj", inner, width)
    yield from linear(f"{name}.output_proj", width, inner)


def extractor(name: str, width: int, heads: int, inner: int) -> Rows:
    """Yield an extractor of ViT-Adapter."""
    yield from norm(f"{name}.query_norm", width)
    yield from norm(f"{name}.feat_norm", width)
    yield from deformable(f"{name}.attn", width, heads, 1, inner)
    yield from linear(f"{name}.ffn.fc1", width // 4, width)
    yield f"{name}.ffn.dwconv.dwconv.weight", (width // 4, 1, 3, 3)
    yield f"{name}.ffn.dwconv.dwconv.bias", (width // 4,)
    yield from linear(f"{name}.ffn.fc2", width, width // 4)
    yield from norm(f"{name}.ffn_norm", width)


def batch_norm(name: str, width: int) -> Rows:
    """Yield a batch norm that is trained."""
    yield from norm(name, width, running=True, counted=True)


def adapter(width: int, heads: int, ratio: float) -> Rows:
    """Yield the parts that ViT-Adapter adds to a vision transformer."""
    inner = int(width * ratio)
    yield "backbone.level_embed", (3, width)
    for number, into in ((0, 3), (3, 64), (6, 64)):
        yield from conv(f"backbone.spm.stem.{number}", 64, into, 3)
        yield from batch_norm(f"backbone.spm.stem.{number + 1}", 64)
    for number, into, out in ((2, 64, 128), (3, 128, 256), (4, 256, 256)):
        yield from conv(f"backbone.spm.conv{number}.0", out, into, 3)
        yield from batch_norm(f"backbone.spm.conv{number}.1", out)
    for number, into in enumerate((64, 128, 256, 256), start=1):
        yield from conv(f"backbone.spm.fc{number}", width, into, 1, bias=True)
    for group in range(4):
        place = f"backbone.interactions.{group}"
        yield f"{place}.injector.gamma", (width,)
        yield from norm(f"{place}.injector.query_norm", width)
        yield from norm(f"{place}.injector.feat_norm", width)
        yield from deformable(f"{place}.injector.attn", width, heads, 3, inner)
        yield from extractor(f"{place}.extractor", width, heads, inner)
        if group == 3:
            for number in range(2):
                yield from extractor(f"{place}.extra_extractors.{number}", width, heads, inner)
    yield "backbone.up.weight", (width, width, 2, 2)
    yield "backbone.up.bias", (width,)
    for number in range(1, 5):
        yield from batch_norm(f"backbone.norm{number}", width)


def baseline(width: int) -> Rows:
    """Yield the pyramid of a plain vision transformer."""
    for number in range(1, 5):
        yield from norm(f"backbone.norm{number}", width)
    for name in ("up1.0", "up1.3", "up2"):
        yield f"backbone.{name}.weight", (width, width, 2, 2)
        yield f"backbone.{name}.bias", (width,)
    yield from norm("backbone.up1.1", width)


def vit_adapter(
    width: int, depth: int, tokens: int, deform: tuple[int, float] | None, *, pyramid: bool = True
) -> Rows:
    """Yield Mask R-CNN of MMDetection on a vision transformer; `deform` is heads and ratio of the adapter."""
    yield "backbone.pos_embed", (1, tokens + 1, width)
    yield from conv("backbone.patch_embed.proj", width, 3, 16, bias=True)
    for block in range(depth):
        here = f"backbone.blocks.{block}"
        yield f"{here}.gamma1", (width,)
        yield f"{here}.gamma2", (width,)
        yield from norm(f"{here}.norm1", width)
        yield from linear(f"{here}.attn.qkv", width * 3, width)
        yield from linear(f"{here}.attn.proj", width, width)
        yield from norm(f"{here}.norm2", width)
        yield from linear(f"{here}.mlp.fc1", width * 4, width)
        yield from linear(f"{here}.mlp.fc2", width, width * 4)
    yield from baseline(width) if deform is None else adapter(width, *deform)
    for level in range(4):
        if pyramid:
            yield from conv(f"neck.lateral_convs.{level}.conv", 256, width, 1, bias=True)
            yield from conv(f"neck.fpn_convs.{level}.conv", 256, 256, 3, bias=True)
        else:
            yield from conv(f"neck.convs.{level}.conv", 256, width, 1, bias=True)
    yield from conv("rpn_head.rpn_conv", 256, 256, 3, bias=True)
    yield from conv("rpn_head.rpn_cls", 3, 256, 1, bias=True)
    yield from conv("rpn_head.rpn_reg", 12, 256, 1, bias=True)
    yield from linear("roi_head.bbox_head.fc_cls", CLASSES + 1, 1024)
    yield from linear("roi_head.bbox_head.fc_reg", CLASSES * 4, 1024)
    yield from linear("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49)
    yield from linear("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    for number in range(4):
        yield from conv(f"roi_head.mask_head.convs.{number}.conv", 256, 256, 3, bias=True)
    yield "roi_head.mask_head.upsample.weight", (256, 256, 2, 2)
    yield "roi_head.mask_head.upsample.bias", (256,)
    yield from conv("roi_head.mask_head.conv_logits", CLASSES, 256, 1, bias=True)


def torchvision_rows(name: str) -> Rows:
    """Yield a network of torchvision with the names in its published file."""
    import torch
    from torchvision.models import get_model

    given = {"num_classes": 91} if name.startswith("maskrcnn") else {"num_classes": 21, "aux_loss": True}
    with torch.device("meta"):
        state = get_model(name, weights=None, weights_backbone=None, **given).state_dict()
    for key, tensor in state.items():
        if name.startswith("maskrcnn"):
            key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
            key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
            if key.endswith("num_batches_tracked"):  # the published norms are frozen
                continue
        yield key, tuple(tensor.shape)


def transformers_rows(kind: str, backbone: Mapping[str, object], labels: int, queries: int) -> Rows:
    """Yield a network of transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    stages = ["stage1", "stage2", "stage3", "stage4"]
    own = {key: value for key, value in backbone.items() if key != "type"}
    make = transformers.ResNetConfig if backbone["type"] == "resnet" else transformers.SwinConfig
    inner = make(out_features=stages, **own)
    with torch.device("meta"):
        if kind == "maskformer":
            settings = transformers.MaskFormerConfig(
                backbone_config=inner,
                decoder_config=transformers.DetrConfig(num_queries=queries),
                num_labels=labels,
            )
            network = transformers.MaskFormerForInstanceSegmentation(settings)
        else:
            config = transformers.Mask2FormerConfig(
                backbone_config=inner, num_queries=queries, num_labels=labels
            )
            network = transformers.Mask2FormerForUniversalSegmentation(config)
    for key, tensor in network.state_dict().items():
        if ".encoder.swin.layernorm." not in key:  # added by later releases, and never used
            yield hub_name(key), tuple(tensor.shape)
    if backbone["type"] == "swin":
        cells = int(str(backbone["window_size"])) ** 2
        for stage, blocks in enumerate(inner.depths):
            for block in range(blocks):
                place = f"model.pixel_level_module.encoder.encoder.layers.{stage}.blocks.{block}"
                yield f"{place}.attention.self.relative_position_index", (cells, cells)


def hub_name(key: str) -> str:
    """Return the name on the hub of a tensor, which later releases of transformers have renamed."""
    if ".encoder.swin." in key:
        key = key.replace(".encoder.swin.", ".encoder.")
        key = re.sub(
            r"attention\.([qkv])_proj\.",
            lambda m: f"attention.self.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }.",
            key,
        )
        for new, old in (
            (
                "attention.relative_position_bias.relative_position_bias_table",
                "attention.self.relative_position_bias_table",
            ),
            ("attention.o_proj.", "attention.output.dense."),
            ("mlp.fc1.", "intermediate.dense."),
            ("mlp.fc2.", "output.dense."),
        ):
            key = key.replace(new, old)
    if "transformer_module.decoder.layers." in key:
        key = key.replace(".mlp.fc", ".fc")
        key = re.sub(r"(self_attn|encoder_attn)\.o_proj\.", r"\1.out_proj.", key)
    return key


def compact(rows: Iterable[tuple[str, Shape]]) -> Iterator[str]:
    """Yield one line for names of equal shape that differ in numbers, or in the last part, as far as all combinations occur."""
    groups: dict[tuple[str, Shape], list[tuple[str, ...]]] = {}
    for name, shape in rows:
        groups.setdefault((re.sub(r"\d+", "#", name), shape), []).append(tuple(re.findall(r"\d+", name)))
    merged: dict[tuple[str, tuple[tuple[str, ...], ...], Shape], list[str]] = {}
    for (template, shape), numbers in groups.items():
        stem, _, last = template.rpartition(".")
        for axes in products(numbers):
            at = (stem, axes, shape) if "#" not in last else (template, axes, shape)
            merged.setdefault(at, []).append("" if "#" in last else last)
    for (stem, axes, shape), lasts in merged.items():
        parts = stem.split("#")
        filled = "".join(itertools.chain(*itertools.zip_longest(parts, map(braces, axes), fillvalue="")))
        end = "" if lasts == [""] else "." + (lasts[0] if len(lasts) == 1 else "{" + ",".join(lasts) + "}")
        yield f"{filled}{end} {' '.join(map(str, shape)) or 'scalar'}"


def products(numbers: list[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield sets of values per place whose combinations are exactly the given ones."""
    axes = tuple(tuple(sorted(set(values), key=int)) for values in zip(*numbers, strict=True))
    if set(itertools.product(*axes)) == set(numbers):
        yield axes
        return
    # Divide at the place with the fewest different values.
    place = min((p for p, values in enumerate(axes) if len(values) > 1), key=lambda p: len(axes[p]))
    for value in axes[place]:
        yield from products([one for one in numbers if one[place] == value])


def braces(values: tuple[str, ...]) -> str:
    """Return a range, a list, or a single value."""
    if len(values) == 1:
        return values[0]
    if [int(v) for v in values] == list(range(int(values[0]), int(values[-1]) + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(values) + "}"


def resnet(depth: int) -> tuple[int, ...]:
    """Return the blocks per stage."""
    return {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]


def hf_resnet(depth: int) -> dict[str, object]:
    """Return the backbone of facebook/maskformer-resnet*."""
    return {"type": "resnet", "depths": list(resnet(depth)), "hidden_sizes": list(WIDTHS)}


def hf_swin(embed: int, third: int, heads: int, window: int) -> dict[str, object]:
    """Return the backbone of facebook/mask2former-swin-*."""
    return {
        "type": "swin",
        "embed_dim": embed,
        "depths": [2, 2, third, 2],
        "num_heads": [heads * 2**i for i in range(4)],
        "window_size": window,
    }


def all_tables() -> Iterator[tuple[str, str, Rows]]:
    """Yield the name, the sources and the rows of every table."""
    for depth in (50, 101):
        for form in ("c4", "dc5", "fpn"):
            yield f"detectron2_mask_rcnn_resnet_{depth}_{form}", DETECTRON2, detectron2(form, resnet(depth))
    yield "detectron2_mask_rcnn_resnext_101_32x8d_fpn", DETECTRON2, detectron2("fpn", resnet(101), 32, 8)
    sizes = {
        "tiny": (192, 12, 196, (6, 1.0)),
        "small": (384, 12, 196, (6, 1.0)),
        "base": (768, 12, 196, (12, 0.5)),
        "large": (1024, 24, 576, (16, 0.5)),
    }
    for size, (width, depth, tokens, deform) in sizes.items():
        yield f"vit_adapter_mask_rcnn_vit_{size}_fpn", VIT_ADAPTER, vit_adapter(width, depth, tokens, None)
        yield (
            f"vit_adapter_mask_rcnn_vit_adapter_{size}_fpn",
            VIT_ADAPTER,
            vit_adapter(width, depth, tokens, deform),
        )
    plain = vit_adapter(384, 12, 196, (6, 1.0), pyramid=False)
    yield "vit_adapter_mask_rcnn_vit_adapter_small", VIT_ADAPTER, plain
    yield from library_tables()


def library_tables() -> Iterator[tuple[str, str, Rows]]:
    """Yield the tables that torchvision and transformers give."""
    import torchvision
    import transformers

    vision = f"torchvision {torchvision.__version__.partition('+')[0]}: torchvision/models/"
    for name, ours, file in (
        ("maskrcnn_resnet50_fpn", "mask_rcnn_resnet_50_fpn", "detection/mask_rcnn.py"),
        ("fcn_resnet50", "fcn_resnet_50", "segmentation/fcn.py"),
        ("fcn_resnet101", "fcn_resnet_101", "segmentation/fcn.py"),
    ):
        yield f"torchvision_{ours}", vision + file, torchvision_rows(name)
    source = (
        f"transformers {transformers.__version__} and, for the names on the hub, https://github.com/huggingface/transformers at "
        "019760818965c71b0a4d38e95820ee0b6cee4240 (convert_mask2former_original_pytorch_checkpoint_to_pytorch.py): transformers/models/"
    )
    for depth in (50, 101):
        rows = transformers_rows("maskformer", hf_resnet(depth), 150, 100)
        place = f"{source}maskformer/modeling_maskformer.py, as facebook/maskformer-resnet{depth}-ade"
        yield f"transformers_maskformer_resnet_{depth}", place, rows
    swins = {
        "tiny": (96, 6, 3, 7),
        "small": (96, 18, 3, 7),
        "base": (128, 18, 4, 12),
        "large": (192, 18, 6, 12),
    }
    for size, (embed, third, heads, window) in swins.items():
        queries = 200 if size == "large" else 100
        rows = transformers_rows("mask2former", hf_swin(embed, third, heads, window), 150, queries)
        place = (
            f"{source}mask2former/modeling_mask2former.py, as facebook/mask2former-swin-{size}-ade-semantic"
        )
        yield f"transformers_mask2former_swin_{size}", place, rows


def main() -> None:
    """Write all tables."""
    FOLDER.mkdir(exist_ok=True)
    for name, source, rows in all_tables():
        lines = [f"# {source}", *compact(rows)]
        (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines) - 1} lines")


if __name__ == "__main__":
    main()
