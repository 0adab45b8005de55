"""The tables of the zoos against medseg's models at their real sizes, on tensors without storage."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

from medseg.models import MODELS, build_model
from medseg.models.pretrained.zoos import read_published as reading
from tests.helpers.zoo_files import read_table

TABLES = sorted((Path(__file__).parent / "tables").glob("*.txt"))

ROWS = {  # of the reference, with the model that each becomes
    *(f"detectron2_mask_rcnn_resnet_{depth}_{form}" for depth in (50, 101) for form in ("c4", "dc5", "fpn")),
    "detectron2_mask_rcnn_resnext_101_32x8d_fpn",
    *(f"vit_adapter_mask_rcnn_vit_{size}_fpn" for size in ("tiny", "small", "base", "large")),
    *(f"vit_adapter_mask_rcnn_vit_adapter_{size}_fpn" for size in ("tiny", "small", "base", "large")),
    "vit_adapter_mask_rcnn_vit_adapter_small",
    "torchvision_mask_rcnn_resnet_50_fpn",
    "torchvision_fcn_resnet_50",
    "torchvision_fcn_resnet_101",
    "transformers_maskformer_resnet_50",
    "transformers_maskformer_resnet_101",
    *(f"transformers_mask2former_swin_{size}" for size in ("tiny", "small", "base", "large")),
}

NOT_LEARNED = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "relative_position_index",
    "empty_weight",
)


def published(table):
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in read_table(table).items()}
        return reading._converted(state, {}, table)


def test_every_row_has_a_table():
    assert {table.stem for table in TABLES} == ROWS
    for table in TABLES:
        assert table.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_tensor_of_the_table_has_its_place(table):
    """None is missing, none is left over but the named ones, and the shapes are the same."""
    found = published(table)
    assert table.stem.endswith(found.model)
    classes = 150 if table.stem.startswith("transformers") else len(found.classes)
    with torch.device("meta"):
        model = build_model(found.model, in_channels=3, num_classes=classes, **found.options, **found.advice)
    found.require_options(model, table)
    own = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked") or name in found.tensors
    }
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == own


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_parameters_are_those_of_the_catalogue(table):
    """Besides what the converted model leaves: scales, the class token's position, and the background's boxes and masks."""
    rows, found = read_table(table), published(table)
    total = sum(prod(shape) for name, shape in rows.items() if not name.endswith(NOT_LEARNED))
    entry = MODELS.get(found.model)
    size = entry.size
    if table.stem.startswith("detectron2"):
        widths = [rows["roi_heads.box_predictor.bbox_pred.weight"][1], 256]
        total += 4 * (widths[0] + 1) + widths[1] + 1
    if table.stem.startswith("vit_adapter"):
        width, depth = found.options["width"], found.options["depth"]
        total -= width * (1 + 2 * depth)
    expected = size.parameters
    if (found.model, size.num_classes) in (("mask_rcnn_resnet_50_fpn", 3), ("mask_rcnn_resnet_101_fpn", 21)):
        # The catalogue counts these for other classes and three anchor sizes per level.
        outputs = 91 if table.stem.startswith("torchvision") else 81
        expected += (outputs - size.num_classes) * (1025 + 4 * 1025 + 257) - 6 * (257 + 4 * 257)
    if found.model == "mask2former_swin_large":  # published with 200 queries; the catalogue counts 100
        expected += 2 * 100 * 256
    assert total == expected
