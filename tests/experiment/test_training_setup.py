"""What a training is composed of."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from medseg.experiment.run_folder import RunFolder
from medseg.experiment.training_setup import TrainingSetup
from medseg.labels.label_table import Labels

pytestmark = pytest.mark.slow


def on(device: str, setup: TrainingSetup) -> TrainingSetup:
    """Return a setup as if its process had another device."""
    found = replace(setup, processes=SimpleNamespace(fabric=SimpleNamespace(device=torch.device(device))))
    found.__dict__["labels"] = Labels.from_names({"liver": 1})
    return found


@pytest.mark.parametrize(("device", "expected"), [("cpu", "worker"), ("cuda", "device")])
def test_augmentation_takes_place_on_a_cuda_device_by_default(make_experiment, workplace, device, expected):
    setup = TrainingSetup.start(make_experiment(), RunFolder(workplace / f"on {device}"))
    assert on(device, setup).augmentation.device == expected
    for named in ("worker", "device"):
        setup = TrainingSetup.start(
            make_experiment(f"augment.device={named}"), RunFolder(workplace / f"{named} on {device}")
        )
        assert on(device, setup).augmentation.device == named


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]
)
def test_images_are_stored_in_the_type_of_the_network_by_default(
    make_experiment, workplace, precision, expected
):
    def image_type(*options: str) -> str:
        setup = TrainingSetup.start(make_experiment(*options), RunFolder(workplace / f"stored {precision}"))
        return replace(setup, processes=SimpleNamespace(precision=precision))._image_type

    assert image_type() == expected
    assert image_type("preprocess.stored_as=float16") == "float16"
    assert image_type("preprocess.stored_as=float32") == "float32"
