"""The training loop: an iterator over reports."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from medseg.data.patches import PatchDataset, Sample
from medseg.errors import ConfigError, MedsegError
from medseg.inference.model_folder import load_weights, save_model
from medseg.inference.precision import resolve_precision, to_channels_last
from medseg.inference.settings import SavedModel
from medseg.labels import Labels
from medseg.losses import build_loss
from medseg.models.base import Model
from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.lock import RunLock
from medseg.train.optimize import build_optimizer, learning_rate
from medseg.train.parameters import Frozen
from medseg.train.pictures import validation_picture
from medseg.train.reports import Report, ReportLog, mean_parts
from medseg.train.settings import TrainSettings
from medseg.train.signals import SIGNALS, Interrupted, StopRequest

MAX_BAD_STEPS = 3
_FABRIC_PRECISION = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}


class Diverged(MedsegError):
    """Loss, gradients or weights were not finite; checkpoints hold only finite weights."""

    exit_code = 3


@dataclass
class _Meter:
    """Sums since the last report."""

    losses: list[float] = field(default_factory=list)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Trainer:
    """Trains one model on prepared patches; iterate over it to run it.

    ``for report in trainer: print(report)`` trains to the end, or goes on from the last checkpoint in the run
    folder. A stop signal ends the loop with `Interrupted` at the next step boundary, after saving. The run folder
    is locked meanwhile, so that no second process writes to it.

    Args:
        model: model with fresh weights.
        train, validation: patches; the length of `train` is ``steps * batch_size``.
        settings: of training.
        labels: for the names in reports.
        saved: contents of the model folder that is written at the end.
        run: run folder.
        seed: of dropout; each step has its own generator.
    """

    def __init__(
        self,
        model: Model,
        train: PatchDataset,
        validation: PatchDataset | None,
        *,
        settings: TrainSettings,
        labels: Labels,
        saved: SavedModel,
        run: Path,
        seed: int,
    ) -> None:
        self.settings, self.labels, self.saved, self.run, self.seed = settings, labels, saved, run, seed
        self._train, self._validation = train, validation
        self.fabric, self._precision = _fabric(settings)
        model.criterion = build_loss(settings.loss, batch_dice=settings.batch_dice)
        # On the device before the optimiser is made, so that a loaded state lands beside its parameters.
        self.model = to_channels_last(model.to(self.fabric.device), model.spatial_dims)
        self._optimizer = build_optimizer(model, settings.optimizer)
        self._frozen = Frozen(model, settings.freeze, settings.freeze_steps)
        self.step = 0
        self.best = -math.inf
        self._resume()
        self._module, self._wrapped_optimizer = self.fabric.setup(model, self._optimizer)
        self._module.mark_forward_method("losses")

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.settings.steps

    def __iter__(self) -> Iterator[Report]:
        with RunLock(self.run), closing(ReportLog(self.run, self.step)) as log, StopRequest() as stop:
            self._meter, bad_steps = _Meter(), 0
            for batch in self._timed(self._loader()):
                loss = self._train_step(batch)
                bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
                if bad_steps >= MAX_BAD_STEPS:
                    raise Diverged(self._divergence(f"loss: found {loss} in {bad_steps} steps in a row"))
                self.step += 1
                self._meter.losses.append(loss)
                last = self.step == self.steps
                report = self._report(log) if self._reports_now(last) else None
                # Asked once: a signal that comes after the save is met at the next boundary, with its own save.
                stopped_by = None if last else stop.received
                if self._due(self.settings.save_every) or last or stopped_by is not None:
                    self._save()
                if report is not None:
                    yield report
                    self._meter = _Meter()
                if stopped_by is not None:
                    raise Interrupted(f"stopped at step {self.step} of {self.steps}, state saved", stopped_by)
            self.export()

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _reports_now(self, last: bool) -> bool:
        return last or self._due(self.settings.report_every) or self._due(self.settings.validate_every)

    def export(self, folder: Path | None = None) -> Path:
        """Write the present weights as a model folder; ``RUN/model`` unless told."""
        target = folder or self.run / "model"
        save_model(target, self.model, self.saved, self.labels)
        return target

    def _loader(self) -> DataLoader[Sample]:
        batch = self.settings.batch_size
        return DataLoader(
            self._train,
            batch_size=batch,
            sampler=range(self.step * batch, self.steps * batch),
            num_workers=self.settings.workers,
            persistent_workers=False,
            # The loader draws a base seed: from its own generator, so that no other draw is moved.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_init_worker,
        )

    def _timed(self, loader: DataLoader[Sample]) -> Iterator[Sample]:
        batches = iter(loader)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._meter.waited += time.perf_counter() - began
            yield batch

    def _train_step(self, batch: Sample) -> float:
        """One update, and its loss; a loss or gradients that are not finite leave the weights as they are."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        rate = learning_rate(self.settings.optimizer, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        self._module.train()
        self._frozen.hold(self.step)
        inputs = self._on_device(batch)
        self._wrapped_optimizer.zero_grad(set_to_none=True)
        losses = self._module.losses(*inputs)
        loss = torch.stack(list(losses.values())).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self._meter.parts.append({name: part.detach() for name, part in losses.items()})
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self._module,
            self._wrapped_optimizer,
            max_norm=self.settings.optimizer.clip_norm,
            error_if_nonfinite=False,
        )
        # In float16 an overflow is part of the plan: the gradient scaler skips the step and lowers its factor.
        if self.settings.precision != "float16" and norm is not None and not math.isfinite(float(norm)):
            return math.nan
        self._wrapped_optimizer.step()
        return value

    def _on_device(self, batch: Sample) -> list[Tensor]:
        """Image and label map and, where the cases have them, instance map."""
        layout: Any = torch.channels_last if self.model.spatial_dims == 2 else torch.channels_last_3d
        image = batch["image"].to(self.fabric.device).contiguous(memory_format=layout)
        maps = [batch[name] for name in ("label", "instances") if name in batch]
        return [image, *(one.to(self.fabric.device) for one in maps)]

    @torch.no_grad()
    def _validate(self, log: ReportLog) -> dict[str, float]:
        """Dice of each foreground label over all held-out patches together; a picture of the first batch."""
        assert self._validation is not None
        self._module.eval()
        classes = len(self.labels)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        loader = DataLoader(
            self._validation, batch_size=self.settings.batch_size, generator=torch.Generator()
        )
        for number, batch in enumerate(loader):
            image, label, *_ = self._on_device(batch)
            predicted = self._module(image).argmax(1, keepdim=True)
            pairs = label.flatten() * classes + predicted.flatten()
            confusion += torch.bincount(pairs, minlength=classes * classes).view(classes, classes).cpu()
            if number == 0:
                picture = validation_picture(batch["image"], batch["label"], predicted.cpu(), self.labels)
                log.add_picture("validation/image_reference_prediction", picture, self.step)
        overlap = confusion.diagonal().double()
        dice = 2 * overlap / (confusion.sum(0) + confusion.sum(1)).double()
        return {label.name: float(dice[index]) for index, label in enumerate(self.labels) if index > 0}

    def _report(self, log: ReportLog) -> Report:
        """Close the meter into a report and log it; validate when it is time."""
        meter = self._meter
        last = self.step == self.steps
        validate = self._validation is not None and (last or self._due(self.settings.validate_every))
        seconds = max(time.perf_counter() - meter.began, 1e-9)
        finite = [loss for loss in meter.losses if math.isfinite(loss)]
        report = Report(
            step=self.step,
            steps=self.steps,
            loss=sum(finite) / len(finite) if finite else math.nan,
            parts=mean_parts(meter.parts),
            lr=self._optimizer.param_groups[0]["lr"],
            seconds_per_step=seconds / len(meter.losses),
            samples_per_second=len(meter.losses) * self.settings.batch_size / seconds,
            stall=meter.waited / seconds,
            val_dice=self._validate(log) if validate else {},
        )
        if report.mean_dice is not None and report.mean_dice > self.best:
            self.best = report.mean_dice
            self._finite_weights()
            self.export(self.run / "best")
        log.add(report)
        return report

    def _finite_weights(self) -> dict[str, Tensor]:
        """The state dict, or `Diverged` for weights that are not finite, of which no step recovers."""
        weights = self.model.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise Diverged(self._divergence("weights: found NaN or infinite values"))
        return weights

    def _save(self) -> None:
        """Save weights and state; the newest two are kept."""
        weights = self._finite_weights()
        state = {
            "step": self.step,
            "best": self.best,
            "seed": self.seed,
            "optimizer": self._optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # float16: the scale of the gradients
        }
        save_checkpoint(self.run / "last", self.step, weights, state)

    def _resume(self) -> None:
        found = load_checkpoint(self.run / "last")
        if found is None:
            return
        weights, state = found
        load_weights(self.model, weights, self.run / "last")
        self._optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.best = int(state["step"]), float(state["best"])

    def _divergence(self, found: str) -> str:
        rate = self._optimizer.param_groups[0]["lr"]
        return (
            f"{self.run}: {found} by step {self.step + 1} (lr {rate:.2e}), expected finite numbers. Lower "
            "train.optimizer.lr, or set train.precision=float32, in a new run; checkpoints made before are kept."
        )

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        held_out = f", {len(self._validation.cases)} held out" if self._validation is not None else ""
        return (
            f"Trainer({self.saved.model['name']}, {parameters:,} parameters, step {self.step} of {self.steps}, "
            f"batch {self.settings.batch_size}, {self._precision} on {self.fabric.device}, "
            f"{len(self._train.cases)} cases{held_out})"
        )


def _fabric(settings: TrainSettings) -> tuple[Fabric, str]:
    """Fabric for the best device, and the name of its arithmetic."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = resolve_precision(settings.precision, torch.device(accelerator))
    if dtype is torch.float16 and accelerator == "cpu":
        raise ConfigError(
            "train.precision: found float16 on a processor, expected float32 or bfloat16, because its small "
            "gradients need a CUDA device. Choose auto."
        )
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    precision: Any = _FABRIC_PRECISION[dtype]
    name = str(dtype).removeprefix("torch.")
    return Fabric(accelerator=accelerator, devices=1, precision=precision), name


def _init_worker(number: int) -> None:
    """Workers cut patches on one thread each, and leave stop signals to the main process.

    Schedulers signal the whole process group: a worker that died of it would end the loop before it can save.
    """
    torch.set_num_threads(1)
    for received in SIGNALS:
        signal.signal(received, signal.SIG_IGN)
