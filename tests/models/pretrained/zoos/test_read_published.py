"""What is recognised as a whole published model, and what is not."""

from __future__ import annotations

import pickle
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import ModelError
from medseg.models import build_model
from medseg.models.pretrained.zoos.read_published import find_published_file, is_published, read_published
from tests.helpers.networks import toy_options

NAME = "mask_rcnn_resnet_50_fpn"


class Evil:
    def __reduce__(self):
        return subprocess.call, (["touch", "TRACE"],)


def test_a_pickle_with_a_callable_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Evil()}, "__author__": "Detectron2 Model Zoo"}))
    assert is_published(path)
    for read in (
        read_published,
        lambda path: build_model(NAME, in_channels=3, num_classes=81, weights=str(path), **toy_options(NAME)),
    ):
        with pytest.raises(
            ModelError,
            match=r"model_final\.pkl: found subprocess\.call in it, expected arrays and plain values",
        ):
            read(path)
    torch.save({"state_dict": {"rpn_head.rpn_conv.weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"found \S+\.call in it, expected tensors and plain values only"):
        is_published(tmp_path / "evil.pth")
    assert not (tmp_path / "TRACE").exists()


def test_medsegs_own_tensors_are_no_published_model(tmp_path):
    with torch.device("meta"):
        detector = build_model(NAME, in_channels=3, num_classes=3, **toy_options(NAME)).state_dict()
    transformer = ["class_predictor.weight", "model.transformer_module.queries_embedder.weight"]
    for names in (detector, [f"network.{part}" for part in transformer]):
        path = tmp_path / "model.safetensors"
        save_file({key: torch.zeros(1) for key in names}, path)
        assert not is_published(path)
        assert find_published_file(str(path), download=False) is None
    save_file({key: torch.zeros(1) for key in transformer}, path)
    assert is_published(path)


def test_a_folder_without_weights_is_no_published_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not is_published(tmp_path)
    assert not is_published(tmp_path / "missing")
