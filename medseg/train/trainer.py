"""The training loop: an iterator over reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from medseg.data.patches import PatchDataset, Sample
from medseg.errors import MedsegError
from medseg.inference.model_folder import load_weights, save_model
from medseg.inference.precision import resolve_precision, to_channels_last
from medseg.inference.settings import SavedModel
from medseg.labels import Labels
from medseg.losses import build_loss
from medseg.models.base import Model
from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.optimize import build_optimizer, learning_rate
from medseg.train.pictures import validation_picture
from medseg.train.reports import Report, ReportLog
from medseg.train.settings import TrainSettings
from medseg.train.signals import Interrupted, StopRequest

MAX_BAD_STEPS = 3
_FABRIC_PRECISION = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}


class Diverged(MedsegError):
    """The loss was not finite several times in a row; the last checkpoint is whole."""

    exit_code = 3


@dataclass
class _Meter:
    """Sums since the last report."""

    losses: list[float] = field(default_factory=list)
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Trainer:
    """Trains one model on prepared patches; iterate over it to run it.

    ``for report in trainer: print(report)`` trains to the end, or goes on from the last checkpoint in the run
    folder. A stop signal ends the loop with `Interrupted` at the next step boundary, after saving.

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
        self.fabric = _fabric(settings)
        model.criterion = build_loss(settings.loss, batch_dice=settings.batch_dice)
        # On the device before the optimiser is made, so that a loaded state lands beside its parameters.
        self.model = to_channels_last(model.to(self.fabric.device), model.spatial_dims)
        self._optimizer = build_optimizer(model, settings.optimizer)
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
        settings = self.settings
        log = ReportLog(self.run, self.step)
        try:
            with StopRequest() as stop:
                self._meter, bad_steps = _Meter(), 0
                for batch in self._timed(self._loader()):
                    loss = self._train_step(batch)
                    bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
                    if bad_steps >= MAX_BAD_STEPS:
                        raise Diverged(self._divergence(loss))
                    self.step += 1
                    self._meter.losses.append(loss)
                    last = self.step == self.steps
                    report = self._report(log) if self._reports_now(last) else None
                    if self._due(settings.save_every) or last or stop.received is not None:
                        self._save("last")
                    if report is not None:
                        yield report
                        self._meter = _Meter()
                    if stop.received is not None and not last:
                        raise Interrupted(
                            f"stopped at step {self.step} of {self.steps}, state saved", stop.received
                        )
            self.export()
        finally:
            log.close()

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
        """One update; a step whose loss is not finite leaves the weights as they are."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        rate = learning_rate(self.settings.optimizer, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._module.train()
        image, label = self._on_device(batch)
        self._wrapped_optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(self._module.losses(image, label).values())).sum()
        value = float(loss.detach())
        if math.isfinite(value):
            self.fabric.backward(loss)
            self.fabric.clip_gradients(
                self._module,
                self._wrapped_optimizer,
                max_norm=self.settings.optimizer.clip_norm,
                error_if_nonfinite=False,
            )
            self._wrapped_optimizer.step()
        return value

    def _on_device(self, batch: Sample) -> tuple[Tensor, Tensor]:
        layout: Any = torch.channels_last if self.model.spatial_dims == 2 else torch.channels_last_3d
        image = batch["image"].to(self.fabric.device).contiguous(memory_format=layout)
        return image, batch["label"].to(self.fabric.device)

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
            image, label = self._on_device(batch)
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
            lr=self._optimizer.param_groups[0]["lr"],
            seconds_per_step=seconds / len(meter.losses),
            samples_per_second=len(meter.losses) * self.settings.batch_size / seconds,
            stall=meter.waited / seconds,
            val_dice=self._validate(log) if validate else {},
        )
        if report.mean_dice is not None and report.mean_dice > self.best:
            self.best = report.mean_dice
            self._save("best")
        log.add(report)
        return report

    def _save(self, kind: str) -> None:
        """Save weights and state; a validation's best keeps one, ``last`` the newest two."""
        state = {
            "step": self.step,
            "best": self.best,
            "seed": self.seed,
            "optimizer": self._optimizer.state_dict(),
        }
        save_checkpoint(
            self.run / kind, self.step, self.model.state_dict(), state, keep=1 if kind == "best" else 2
        )

    def _resume(self) -> None:
        found = load_checkpoint(self.run / "last")
        if found is None:
            return
        weights, state = found
        load_weights(self.model, weights, self.run / "last")
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = int(state["step"]), float(state["best"])

    def _divergence(self, loss: float) -> str:
        rate = self._optimizer.param_groups[0]["lr"]
        return (
            f"{self.run}: loss: found {loss} in {MAX_BAD_STEPS} steps in a row up to step {self.step + 1}, expected a "
            f"finite number (lr {rate:.2e}). Lower train.optimizer.lr, or set train.precision=float32, in a new run; "
            f"the last checkpoint is in {self.run / 'last'}."
        )


def _fabric(settings: TrainSettings) -> Fabric:
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = resolve_precision(settings.precision, torch.device(accelerator))
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    precision: Any = _FABRIC_PRECISION[dtype]
    return Fabric(accelerator=accelerator, devices=1, precision=precision)


def _init_worker(number: int) -> None:
    """Workers cut patches on one thread each, and leave the keyboard to the main process."""
    import signal

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
