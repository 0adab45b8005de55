from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from medseg.errors import ModelError
from medseg.models.detections import boxes_of, instance_targets
from medseg.models.maskformer.query_losses import average_targets


def label_map():
    label = torch.zeros(1, 1, 8, 9, dtype=torch.long)
    label[0, 0, 1:4, 2:5] = 1  # 9 voxels
    label[0, 0, 4, 5] = 1  # touches the corner of the first
    label[0, 0, 4, 2:4] = 2  # touches the first, but is of another class
    label[0, 0, 7, 8] = 1
    return label


def test_components_of_each_class_are_instances_with_half_open_boxes():
    (found,) = instance_targets(label_map(), num_classes=3, limit=9)
    assert found.classes.tolist() == [1, 2, 1]
    assert found.boxes.tolist() == [[1, 2, 5, 6], [4, 2, 5, 4], [7, 8, 8, 9]]
    assert found.masks.sum((1, 2)).tolist() == [10, 2, 1]
    assert found.masks[1, 4].tolist() == [False, False, True, True, *[False] * 5]


def test_image_without_instances():
    (found,) = instance_targets(torch.zeros(1, 1, 8, 9, dtype=torch.long), num_classes=3, limit=9)
    assert (found.classes.shape, found.boxes.shape, found.masks.shape) == ((0,), (0, 4), (0, 8, 9))
    assert found.masks.dtype == torch.bool
    assert found.classes.dtype == torch.int64


def test_instance_map_takes_precedence_over_components():
    label = label_map()
    instances = torch.zeros_like(label)
    instances[0, 0, 1:4, 2:3] = 70
    instances[0, 0, 1:5, 3:5] = 4  # six voxels of class 1, one of class 2, one of the background
    (found,) = instance_targets(label, instances, num_classes=3, limit=9)
    assert found.classes.tolist() == [1, 1]
    assert found.masks.sum((1, 2)).tolist() == [7, 3]
    assert found.boxes.tolist() == [[1, 3, 5, 5], [1, 2, 4, 3]]


def test_regions_cover_voxels_without_instance():
    label = label_map()
    (found,) = instance_targets(label, num_classes=3, limit=9, regions=True)
    assert found.classes.tolist() == [0, 1, 2, 1]
    assert (found.masks.sum(dim=0) == 1).all()
    assert torch.equal(found.masks[0], label[0, 0] == 0)
    (whole,) = instance_targets(label, torch.zeros_like(label), num_classes=3, limit=9, regions=True)
    assert whole.classes.tolist() == [0, 1, 2]
    for k in range(3):
        assert torch.equal(whole.masks[k], label[0, 0] == k)


def test_largest_instances_are_kept():
    (found,) = instance_targets(label_map(), num_classes=3, limit=2)
    assert found.masks.sum((1, 2)).tolist() == [10, 2]
    (found,) = instance_targets(label_map(), num_classes=3, limit=2, regions=True)
    assert found.classes.tolist() == [0, 1]


@pytest.mark.parametrize(("value", "words"), [(3, "found 0 to 3, expected 0 to 2"), (-1, "found -1 to 2")])
def test_labels_beyond_the_classes_raise(value, words):
    label = label_map()
    label[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=words):
        instance_targets(label, num_classes=3, limit=9)


def test_boxes_reach_the_edges_of_the_image():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0] = True
    masks[1, 3, 5] = True
    assert boxes_of(masks).tolist() == [[0, 0, 4, 6], [3, 5, 4, 6]]


def test_number_of_targets_is_at_least_one():
    device = torch.device("cpu")
    assert average_targets([torch.zeros(0), torch.zeros(0)], device) == 1
    assert average_targets([torch.zeros(3), torch.zeros(2)], device) == 5


RANK = """
import sys, torch, torch.distributed as dist
from medseg.models.maskformer.query_losses import average_targets
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=1, world_size=2)
print(average_targets([torch.zeros(5)], torch.device("cpu")).item())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_number_of_targets_is_averaged_over_ranks(tmp_path):
    """Ranks with 1 and 5 targets, the second in a process of its own."""
    store = str(tmp_path / "store")
    command = [sys.executable, "-W", "ignore", "-c", RANK, store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        wait = timedelta(seconds=90)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=2, timeout=wait)
        try:
            assert average_targets([torch.zeros(1)], torch.device("cpu")) == 3
        finally:
            dist.destroy_process_group()
        assert other.communicate(timeout=90)[0].strip() == "3.0"
