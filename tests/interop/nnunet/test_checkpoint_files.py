"""Checkpoints of nnU-Net: what is in real ones is read, anything else is refused before it runs."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import ModelError
from medseg.interop.nnunet.checkpoint_files import read_checkpoint
from tests.helpers.nnunet_models import (
    architecture,
    configuration,
    dataset_of,
    plans_of,
    random_network,
    save_checkpoint,
)
from tests.helpers.payload import Payload

PLANS = plans_of(
    {"2d": configuration([8, 8], [1, 1], architecture(2, features=(2, 2)), ["NoNormalization"], [False])}
)


@pytest.fixture
def path(tmp_path) -> Path:
    network = random_network(PLANS, "2d", dataset_of(), "nnUNetTrainer", 0)
    init_args = {"plans": PLANS, "configuration": "2d", "fold": 0, "dataset_json": dataset_of()}
    save_checkpoint(tmp_path / "c.pth", network, "nnUNetTrainer", init_args, (0, 1))
    return tmp_path / "c.pth"


def changed(path: Path, **values: Any) -> Path:
    """The same checkpoint with other values."""
    stored = torch.load(path, weights_only=False) | values
    torch.save({key: value for key, value in stored.items() if value is not None}, path)
    return path


def test_a_real_checkpoint_is_read(path):
    found = read_checkpoint(path)
    assert (found.trainer, found.configuration, found.epochs, found.mirror_axes) == (
        "nnUNetTrainer",
        "2d",
        1000,
        (0, 1),
    )
    assert torch.equal(
        found.weights["decoder.seg_layers.0.bias"],
        torch.load(path, weights_only=False)["network_weights"]["decoder.seg_layers.0.bias"],
    )
    assert not found.has_batch_norm


def test_wrapped_networks_are_read(path):
    stored = torch.load(path, weights_only=False)["network_weights"]
    wrapped = OrderedDict((f"module._orig_mod.{key}", value) for key, value in stored.items())
    found = read_checkpoint(changed(path, network_weights=wrapped, inference_allowed_mirroring_axes=None))
    assert found.weights.keys() == stored.keys()
    assert found.mirror_axes == ()


def test_numbers_of_older_numpy_are_read(path, tmp_path):
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(older, "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        assert any(b"numpy._core.multiarray" in content for content in contents.values())
        for name, content in contents.items():
            target.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(older).trainer == "nnUNetTrainer"


@pytest.mark.parametrize("key", ["network_weights", "extra", "_best_ema"])
def test_payload_is_not_executed(path, tmp_path, key):
    target = tmp_path / "ran"
    with pytest.raises(ModelError, match=r"c\.pth: found (posix|nt)\.mkdir in it, expected tensors"):
        read_checkpoint(changed(path, **{key: Payload(target)}))
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert target.exists()


def test_other_classes_raise_with_their_name(path):
    with pytest.raises(ModelError, match=r"found pathlib\.\w*Path in it"):
        read_checkpoint(changed(path, extra=Path("a")))
    with pytest.raises(ModelError, match=r"found numpy\S+, numpy\.ndarray in it"):
        read_checkpoint(changed(path, extra=np.arange(3)))


def test_older_format_raises(path):
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"c\.pth: not a checkpoint in torch's zip format"):
        read_checkpoint(path)


def test_compressed_members_raise(path, tmp_path):
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ModelError, match=r"packed\.pth: member .* is compressed"):
        read_checkpoint(packed)


def test_damaged_files_raise(path, tmp_path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"c\.pth: not a checkpoint in torch's zip format"):
        read_checkpoint(path)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    path.write_bytes(empty.getvalue())
    with pytest.raises(ModelError, match=r"c\.pth: not a readable checkpoint"):
        read_checkpoint(path)
    with pytest.raises(ModelError, match=r"none\.pth: no such file"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"network_weights": [1]}, "network_weights: found list, expected dict"),
        ({"network_weights": {"a": 1}}, "network_weights: expected named tensors"),
        ({"trainer_name": 3}, "trainer_name: found int, expected str"),
        ({"init_args": {}}, "configuration: found NoneType, expected str"),
        ({"inference_allowed_mirroring_axes": (0, 5)}, r"mirroring_axes: found \(0, 5\)"),
        ({"inference_allowed_mirroring_axes": (0, 0)}, r"mirroring_axes: found \(0, 0\)"),
    ],
)
def test_other_contents_raise(path, values, told):
    with pytest.raises(ModelError, match=told):
        read_checkpoint(changed(path, **values))


def test_files_other_than_checkpoints_raise(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match=r"init_args: found NoneType, expected dict\. Give a checkpoint"):
        read_checkpoint(tmp_path / "list.pth")
