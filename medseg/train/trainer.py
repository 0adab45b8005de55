"""The training loop: an iterator over reports."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import ConfigError, MedsegError
from medseg.fine_tuning.old_labels import KeepOldLabels, OldLabels, show_to_old_model
from medseg.labels.label_sets import LabelSets
from medseg.losses.build import build_loss
from medseg.model_folder.folder import load_weights
from medseg.models.base import Model
from medseg.runtime.devices import memory_format
from medseg.runtime.formatting import listed, pluralise
from medseg.runtime.glibc_memory import keep_freed_memory
from medseg.runtime.stop_signals import Interrupted, StopRequest
from medseg.train.batches import Batch, Batches, TrainingPatches, load_batches, resolve_workers
from medseg.train.checkpoint import load_checkpoint, remove_old_checkpoints, save_checkpoint
from medseg.train.distributed_training import Distributed, lost_ranks_explained
from medseg.train.loader_workers import lost_workers_explained
from medseg.train.optimization.compile_forward import compile_forward
from medseg.train.optimization.ema import EMA
from medseg.train.optimization.optimizer import build_optimizer, restore_optimizer
from medseg.train.optimization.optimizer_step import OptimizerStep
from medseg.train.optimization.parameter_groups import FrozenParts
from medseg.train.optimization.schedule import (
    ScheduleProgress,
    extended_schedule,
    learning_rate,
    new_schedule,
)
from medseg.train.reports.loggers import LoggerGroup, create_loggers
from medseg.train.reports.reporting import BestValidation, Meter, Report, ReportLog, mean_loss_terms
from medseg.train.settings import TrainSettings
from medseg.train.step_losses import StepLosses
from medseg.train.sync_batch_norm import restore_running_statistics, running_statistics
from medseg.train.timing.step_costs import UNKNOWN, Overhead, TimeSoFar
from medseg.train.timing.step_estimate import StepEstimate, estimate_steps
from medseg.train.timing.time_budget import StepPlanner
from medseg.train.timing.time_left import TimeLeft
from medseg.train.to_device import ToDevice
from medseg.train.training_run import TrainingRun
from medseg.train.validation import validate

MAX_BAD_STEPS = 3
_MOST_LISTED = 8
ENDLESS = 1_000_000_000  # a step that no training reaches


class Diverged(MedsegError):
    """Loss, gradients or weights were not finite; checkpoints hold only finite weights."""

    exit_code = 3


class Trainer:
    """The training of one model on prepared patches; iterate over it to run it.

    ``for report in trainer: print(report)`` trains to the end. A stop signal ends the loop with `Interrupted` at the next
    step boundary, after saving. The run folder is locked meanwhile, so that no second process writes to it.

    Args:
        model: Model with fresh weights.
        patches: Patches to train on and to validate on.
        run: Run folder, and the contents of the model folder that is written at the end.
        settings: Settings of training.
        label_sets: Classes that each value of the patches' label maps may stand for.
        seed: Seed of dropout; each step has its own generator.
        distributed: Processes that train together.
        resume: Continue from the last checkpoint in the run folder.

    Attributes:
        step: Steps done.
        seconds: Seconds spent on them.
        best: The best validation so far.
        finished: Whether the model only remains to be exported.
        on_step: Called after each step with the steps done and the total number, None if that is not known yet.
        time_left: Estimator of the time that is left.
        step_seconds: Seconds per step by which the steps of a time budget were planned last; None before that.
    """

    def __init__(
        self,
        model: Model,
        patches: TrainingPatches,
        run: TrainingRun,
        *,
        settings: TrainSettings,
        label_sets: LabelSets,
        seed: int,
        distributed: Distributed,
        resume: bool = False,
    ) -> None:
        self.settings, self.patches, self.run, self.seed = settings, patches, run, seed
        self.distributed, self.fabric = distributed, distributed.fabric
        self._label_sets = label_sets
        model.criterion = build_loss(
            settings.loss,
            batch_dice=settings.batch_dice,
            label_sets=label_sets,
            class_weights=settings.class_weights,
        )
        if model.voxel_size is not None:
            model.voxel_size = patches.train.voxel_size
        if model.learns_label_sets and label_sets.sets:
            model.label_sets = label_sets
        device = self.fabric.device
        # On the device before the optimiser is built, so that a loaded state is placed with its parameters.
        self.model = distributed.to_device(model).to(memory_format=memory_format(device, model.spatial_dims))
        self._to_device = ToDevice(patches.train, device, model.spatial_dims)
        self._losses = StepLosses(device)
        self._ema = EMA(self.model, settings.ema_decay) if settings.ema_decay is not None else None
        self._optimizer = build_optimizer(model, settings.optimizer, fused=device.type == "cuda")
        self._optimizer_step = OptimizerStep(
            self._optimizer, settings.optimizer.clip_norm, distributed.gradient_scaler
        )
        self._frozen = FrozenParts(model, settings.freeze, settings.freeze_steps)
        self.step, self.seconds, self.finished = 0, 0.0, False
        self.on_step: Callable[[int, int | None], None] | None = None
        self.step_seconds: float | None = None
        self._measured = Meter().state()  # since the last report, before this process
        self.best = BestValidation()
        self._schedule = new_schedule(settings)
        self._spans = {"validation": 0.0, "saving": 0.0}  # seconds since the last step boundary
        self._overhead = UNKNOWN
        if resume:
            self._resume()
        self._reported_at, self._report_due = self.seconds - float(self._measured["seconds"]), False
        self.time_left = self._time_left()
        # Before the training starts, so that a missing package is noticed.
        self._loggers = LoggerGroup(create_loggers(settings.loggers) if distributed.is_main else {})
        if settings.compile:
            compile_forward(model)
        with lost_ranks_explained():
            self._module = self.fabric.setup_module(model)
        self._module.mark_forward_method("losses")

    def keep_old_labels(self, old: OldLabels) -> None:
        """Add the distillation of the labels of an earlier network to the loss; to be called before the training starts.

        Args:
            old: The earlier network, which is moved to the device.
        """
        self.model.criterion = KeepOldLabels(self.model.require_criterion(), old.on(self.fabric.device))

    @property
    def steps(self) -> int | None:
        """The total number of optimiser steps; None before a time budget has its first plan."""
        return self._schedule.end

    @property
    def estimate(self) -> StepEstimate | None:
        """The steps that are expected to fit into the time budget; None after the first step, and see `estimate_steps`."""
        return (
            None if self.step else estimate_steps(self.model, self.settings, self.patches.train.spatial_size)
        )

    @property
    def _end_in_words(self) -> str:
        """The end in words: the steps, or the time budget if the steps are planned during training."""
        budget = self.settings.max_time
        if budget is None:
            return str(self.steps)
        return f"{budget} (about {pluralise(self.steps, 'step')})" if self.steps else budget

    def __iter__(self) -> Iterator[Report]:
        with ExitStack() as stack, keep_freed_memory(self.fabric.device.type == "cpu"):
            if self.distributed.is_main:
                stack.enter_context(self.run.lock())
                self.run.sweep()
            if self.finished:
                if self.distributed.is_main:  # the process may have been killed after the last save
                    remove_old_checkpoints(self.run.checkpoints, self.step)
                self.export()
                return
            stack.enter_context(lost_workers_explained())
            stack.enter_context(lost_ranks_explained())
            log = stack.enter_context(
                closing(ReportLog(self.run.folder, self.step, silent=not self.distributed.is_main))
            )
            stack.enter_context(self._loggers.session(self.run.folder, self.run.settings))
            stop = stack.enter_context(StopRequest(record_all=self.distributed.size > 1))
            self._began = time.perf_counter() - self.seconds
            self._meter, self._bad_steps = Meter.restored(self._measured), 0
            batches, planner = stack.enter_context(closing(self._batches())), self._step_planner()
            # Workers ignore stop signals: those of an abandoned loop would keep this process from ending.
            atexit.register(batches.close)
            stack.callback(atexit.unregister, batches.close)
            while not self.finished:
                loss = self._train_step(next(batches))
                self.step += 1
                self._losses.add(self.step, loss)
                last = self.step == self.steps
                self._read_losses(everything=self._reports_now(last))
                report = self._report(log, last) if self._reports_now(last) else None
                self.finished = last or self._out_of_patience
                # Asked once: a signal that arrives after the save is handled at the next boundary, with its own save.
                stopped_by = self._sync_step(stop, planner, reported=report is not None)
                if self._due(self.settings.save_every) or self.finished or stopped_by is not None:
                    self._save(Meter() if report is not None else self._meter)
                if self.on_step is not None:
                    self.on_step(self.step, self.steps)
                if report is not None:
                    yield report
                    self._meter = Meter()
                if stopped_by is not None:
                    raise Interrupted(
                        f"stopped at step {self.step} of {self._end_in_words}, state saved", stopped_by
                    )
            self.export()

    def _read_losses(self, *, everything: bool) -> None:
        """Read the losses of steps that are finished, or of all steps; raise `Diverged` after too many bad ones."""
        for step, loss in self._losses.read(everything=everything):
            self._bad_steps = 0 if math.isfinite(loss) else self._bad_steps + 1
            if self._bad_steps >= MAX_BAD_STEPS:
                found = f"loss: found {loss} in {self._bad_steps} steps in a row"
                raise Diverged(self._divergence(found, step))
            self._meter.losses.append(loss)

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _reports_now(self, last: bool) -> bool:
        by_steps = isinstance(self.settings.report_every, int) and self._due(self.settings.report_every)
        return last or by_steps or self._report_due or self._due(self.settings.validate_every)

    @property
    def _out_of_patience(self) -> bool:
        return (
            self.settings.early_stopping_patience is not None
            and self.best.without_gain >= self.settings.early_stopping_patience
        )

    def _sync_step(self, stop: StopRequest, planner: StepPlanner | None, *, reported: bool) -> int | None:
        """Let all processes agree on the time and on a stop signal between two steps; return the signal."""
        signal, spent, validation, saving = self.distributed.max(
            stop.received or 0,
            time.perf_counter() - self._began,
            self._spans["validation"],
            self._spans["saving"],
        )
        self.seconds, self._spans = spent, dict.fromkeys(self._spans, 0.0)
        self._overhead = self._overhead.updated(validation=validation, saving=saving)
        self.time_left.update(self.step, spent, validation=validation, saving=saving)
        self._time_report(reported)
        end = planner.update(self.step, spent, validation=validation, saving=saving) if planner else None
        if planner is not None and end is not None and not self.finished:
            self.step_seconds = planner.pace
            self._schedule = self._schedule.replanned(self.step, end)
        return int(signal) if signal and not self.finished else None

    def _time_report(self, reported: bool) -> None:
        """Decide by the time that all processes agree on whether the next step is reported."""
        every = self.settings.report_seconds
        self._reported_at = self.seconds if reported else self._reported_at
        self._report_due = every is not None and self.seconds - self._reported_at >= every

    def _time_left(self) -> TimeLeft:
        """Return an estimator that begins with the next step."""
        return TimeLeft(self.settings, self._so_far)

    def _step_planner(self) -> StepPlanner | None:
        return None if self.settings.max_time is None else StepPlanner(self.settings, self._so_far)

    @property
    def _so_far(self) -> TimeSoFar:
        return TimeSoFar(self.step, self.seconds, self.patches.validation is not None, self._overhead)

    @property
    def evaluated_model(self) -> Model:
        """The model whose weights are validated and exported: the moving average, if there is one."""
        return self.model if self._ema is None else self._ema.model

    def export(self, target: Path | None = None) -> Path:
        """Write the current weights as a model folder.

        Args:
            target: Folder to write (default: ``RUN/model``).

        Returns:
            The folder.
        """
        target = target or self.run.model
        if self.distributed.is_main:
            self.run.export(self.evaluated_model, self.step, target)
        return target

    def _batches(self) -> Generator[list[Batch]]:
        """Yield the batches of each step and record the time that they take."""
        # The number of steps within a time budget is known only during training.
        end = self.settings.steps if self.settings.max_time is None else ENDLESS
        steps = range(self.step, end or ENDLESS)
        parts = Batches(
            steps,
            self.settings.batch_size,
            self.settings.gradient_accumulation,
            self.distributed.rank,
            self.distributed.size,
        )
        device = self.fabric.device
        loaded = load_batches(
            self.patches.train,
            parts,
            resolve_workers(self.settings.workers, device),
            pin_memory=device.type == "cuda",
        )
        with closing(loaded) as batches:
            while True:
                began = time.perf_counter()
                together = list(islice(batches, self.settings.gradient_accumulation))
                self._meter.waited += time.perf_counter() - began
                yield together

    def _train_step(self, batches: list[Batch]) -> Tensor:
        """Take one step and return its loss `()`, on the device.

        Nothing here waits for the device. If the loss or the gradients are not finite, the step changes nothing.
        """
        rate = learning_rate(self.settings.optimizer, self.step, self._schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        self._module.train()
        self._frozen.apply(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        before = running_statistics(self.model)
        losses = [self._gradients(number, batch, len(batches)) for number, batch in enumerate(batches)]
        loss = sum(losses[1:], losses[0]) / len(losses)
        result = self._optimizer_step(loss)
        restore_running_statistics(before, self.model, result.skipped)
        if self._ema is not None:
            self._ema.update(self.model, self.step, result.skipped)
        return result.loss

    def _gradients(self, number: int, batch: Batch, of: int) -> Tensor:
        """Add the gradients of one batch of a step; return its loss `()`, NaN if that of any process is not finite."""
        part = number * self.distributed.size + self.distributed.rank
        torch.manual_seed((self.seed * 1_000_003 + self.step + part * 0x9E3779B97F4A7C15) % 2**64)
        moved = self._to_device(batch)
        # The cases of some datasets have instance maps or label probabilities, too.
        maps = [moved["probabilities" if "probabilities" in moved else "label"]]
        maps += [moved["instances"]] if "instances" in moved else []
        show_to_old_model(self.model, moved["image"])
        with self.fabric.no_backward_sync(self._module, enabled=number < of - 1):
            losses = self._module.losses(moved["image"], *maps)
            loss = torch.stack(list(losses.values())).sum()
            self._meter.loss_terms.append({name: part.detach() for name, part in losses.items()})
            self.fabric.backward(loss / of if of > 1 else loss)
        return self.distributed.mean_loss(loss)

    def _report(self, log: ReportLog, last: bool) -> Report:
        """Log a report of the steps since the last one; validate if it is time to do so."""
        meter, settings = self._meter, self.settings
        now = time.perf_counter()
        seconds = max(now - meter.began, 1e-9)
        finite = [loss for loss in meter.losses if math.isfinite(loss)]
        batch = settings.batch_size * settings.gradient_accumulation * self.distributed.size
        validates = self.patches.validation is not None and (last or self._due(settings.validate_every))
        report = Report(
            step=self.step,
            steps=self.steps,
            loss=sum(finite) / len(finite) if finite else math.nan,
            loss_terms=mean_loss_terms(meter.loss_terms),
            lr=self._optimizer.param_groups[0]["lr"],
            seconds_per_step=seconds / len(meter.losses),
            samples_per_second=len(meter.losses) * batch / seconds,
            data_wait_fraction=meter.waited / seconds,
            val_dice=self._validate(log) if validates else {},
            seconds=time.perf_counter() - self._began,
            best_dice=None if self.best.step is None else self.best.dice,
            best_step=self.best.step,
            seconds_left=self.time_left.seconds(
                self.steps, step=self.step, spent=time.perf_counter() - self._began
            ),
        )
        log.add(report)
        self._loggers.log(report)
        if validates:
            self._spans["validation"] = time.perf_counter() - now
        return report

    def _validate(self, log: ReportLog) -> dict[str, float]:
        """Compute the Dice on held-out patches; if it is the best so far, export the weights to ``RUN/best``."""
        assert self.patches.validation is not None
        held_out, size = self.patches.validation, self.settings.batch_size
        dice = validate(
            self.evaluated_model, held_out, self._label_sets, size, self.distributed, log, self.step
        )
        known = [value for value in dice.values() if not math.isnan(value)]
        mean = sum(known) / len(known) if known else -math.inf
        if self.best.update(mean, self.step):
            self._finite_weights()
            self.export(self.run.best)
        return dice

    def _finite_weights(self) -> dict[str, Tensor]:
        """Return the state dict; raise `Diverged` if weights are not finite, because no step recovers from that."""
        weights = self.model.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise Diverged(self._divergence("weights: found NaN or infinite values", self.step + 1))
        return weights

    def _save(self, meter: Meter) -> None:
        """Save weights and state with the figures that were not reported yet; the newest two checkpoints are kept."""
        began = time.perf_counter()
        self._read_losses(everything=True)
        weights = self._finite_weights()
        state = {
            "step": self.step,
            "seconds": began
            - self._began
            + self._overhead.saving,  # this checkpoint takes as long as the last one
            "overhead": list(self._overhead),
            "finished": self.finished,
            "best": asdict(self.best),
            "seed": self.seed,
            "meter": meter.state(),
            "schedule": asdict(self._schedule),
            "extensions": self.run.extensions,
            "processes": self.distributed.size,
            "optimizer": self._optimizer.state_dict(),
            "ema": None if self._ema is None else self._ema.model.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # float16: the scale of the gradients
        }
        if self.distributed.is_main:
            save_checkpoint(self.run.checkpoints, self.step, weights, state)
        self._spans["saving"] = time.perf_counter() - began

    def _resume(self) -> None:
        found = load_checkpoint(self.run.checkpoints)
        if found is None:
            return
        weights, state = found
        if state["processes"] != self.distributed.size:
            raise ConfigError(
                f"{self.run.folder}: found a training of {state['processes']} processes, expected {self.distributed.size} as "
                "started now, because a step takes a batch from each. Start as many with torchrun."
            )
        load_weights(self.model, weights, self.run.checkpoints)
        if self._ema is not None:
            load_weights(self._ema.model, state["ema"], self.run.checkpoints)
        restore_optimizer(self._optimizer, state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._measured = state["meter"]
        self._overhead = Overhead(*state["overhead"])
        self.best = BestValidation.resumed(state["best"], self.run.best)
        if state["extensions"] == self.run.extensions:
            self._schedule = ScheduleProgress(**state["schedule"])
            self.finished = bool(state["finished"]) or self.step == self.steps
        else:
            self._schedule = extended_schedule(self.settings, self.step, self.seconds)
            self.best.without_gain = 0

    def _divergence(self, found: str, step: int) -> str:
        rate = self._optimizer.param_groups[0]["lr"]
        parts = self.settings.batch_size * self.settings.gradient_accumulation * self.distributed.size
        last = range(max(0, step - MAX_BAD_STEPS) * parts, step * parts)
        ids = self.patches.train.case_ids(last)
        cases = listed(ids, _MOST_LISTED)
        return (
            f"{self.run.folder}: {found} by step {step} (lr {rate:.2e}; patches of cases {cases}), expected finite numbers. Lower "
            "train.optimizer.lr, or set train.precision=float32, in a new run; earlier checkpoints are kept."
        )

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        held_out = (
            f", {len(self.patches.validation.cases)} held out" if self.patches.validation is not None else ""
        )
        settings, parts = self.settings, self.settings.gradient_accumulation * self.distributed.size
        batch = f"batch {settings.batch_size}" + (f" x {parts}" if parts > 1 else "")
        return (
            f"Trainer({self.run.saved.model['name']}, {parameters:,} parameters, step {self.step} of {self._end_in_words}, "
            f"{batch}, {self.distributed.precision} on {self.fabric.device}, "
            f"{pluralise(len(self.patches.train.cases), 'case')}{held_out})"
        )
