"""Training on a CUDA device: it never waits within a step, and its numbers are those of a processor up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from medseg.data.patches.drawn_patch import PackedPatches
from medseg.train.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
RECIPE = ("train.gradient_accumulation=2", "train.ema_decay=0.9", "train.workers=2", "train.report_every=4")
STRONG = tuple(
    f"augment.{name}_p=0.7"
    for name in ("rotate", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_does_not_wait_for_the_device(make_experiment, workplace, monkeypatch, precision, name):
    plain = Trainer._train_step

    def step(self: Trainer, batches: list) -> torch.Tensor:
        if self.step < 2:  # the first steps create buffers and choose algorithms
            return plain(self, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_train_step", step)
    experiment = make_experiment(
        *RECIPE, *STRONG, f"train.precision={precision}", f"train.optimizer.name={name}", "model.norm=batch"
    )
    reports = list(experiment.trainer(workplace / f"no waits {precision} {name}"))
    assert all(math.isfinite(report.loss) for report in reports)


def test_a_broken_batch_changes_nothing(make_experiment, workplace, monkeypatch):
    plain = Trainer._train_step

    def state(trainer: Trainer) -> list[torch.Tensor]:
        optimizer = [one for found in trainer._optimizer.state.values() for one in found.values()]
        assert trainer._ema is not None
        models = (trainer.model.state_dict().values(), trainer._ema.model.state_dict().values())
        return [one.clone() for one in (*optimizer, *models[0], *models[1])]

    def step(self: Trainer, batches: list[PackedPatches]) -> torch.Tensor:
        before, broken = state(self), self.step in (0, 3)
        if broken:
            batches[1].tensors[0].fill_(math.nan)
        loss = plain(self, batches)
        after = state(self)
        if broken and self.step:  # in the first step, buffers of the optimiser are created
            assert all(map(torch.equal, before, after))
        return loss

    monkeypatch.setattr(Trainer, "_train_step", step)
    experiment = make_experiment(
        *RECIPE, "model.norm=batch", "train.report_every=1", "train.precision=float32"
    )
    reports = list(experiment.trainer(workplace / "broken on cuda"))
    assert [math.isfinite(report.loss) for report in reports] == [step not in (0, 3) for step in range(8)]


def test_patches_augmented_on_the_device_are_those_of_a_processor(make_experiment, workplace):
    patches = make_experiment(*STRONG, "augment.device=device").trainer(workplace / "compared").patches.train
    packed = PackedPatches.pack([patches.draw(index) for index in range(12)])
    expected, found = patches.finish_batch(packed), patches.finish_batch(packed.map(lambda part: part.cuda()))
    torch.testing.assert_close(found["image"].cpu(), expected["image"], atol=1e-4, rtol=1e-4)
    assert (found["label"].cpu() != expected["label"]).float().mean() < 1e-3


@pytest.fixture
def _algorithms() -> Iterator[None]:
    """Allow all algorithms again afterwards."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_algorithms")
def test_a_deterministic_training_is_resumed_bit_for_bit(make_experiment, workplace):
    experiment = make_experiment(*RECIPE, "train.deterministic=true", "train.save_every=4")
    whole, stopped = workplace / "whole on cuda", workplace / "stopped on cuda"
    list(experiment.trainer(whole))
    next(iter(experiment.trainer(stopped)))
    list(experiment.trainer(stopped, resume=True))
    one, two = (load_file(run / "model" / "model.safetensors") for run in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_compiled_network_trains(make_experiment, workplace):
    trainer = make_experiment(*RECIPE, "train.compile=true").trainer(workplace / "compiled on cuda")
    assert all(math.isfinite(report.loss) for report in trainer)
