"""Reports of a training: one line of JSON each, TensorBoard curves and overlays."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from medseg.errors import warn_once
from medseg.storage.atomic import write_error, write_text
from medseg.storage.json_files import parse_json
from medseg.storage.manifest import is_complete

METRICS = "metrics.jsonl"
_MOST_LISTED, _LOWEST_LISTED = 12, 5
_LARGEST_EXACT = 1 << 53  # whole numbers up to here are exact as floats
_OPTIONAL = ("val_dice", "loss_terms", "best_dice", "best_step", "seconds_left")


@dataclass(frozen=True)
class Report:
    """The figures of the training since the last report.

    Attributes:
        step: Optimiser steps done.
        steps: Total steps; None before the first plan of a training with `max_time`.
        loss: Mean training loss.
        lr: Learning rate of the last step.
        seconds_per_step: Wall time per step in seconds, data included.
        samples_per_second: Patches per second of all processes together.
        data_wait_fraction: Fraction of the time spent waiting for data.
        val_dice: Dice over all held-out patches together, by label; empty without a validation.
        seconds: Total seconds of training, with validations, checkpoints and the time before an interruption.
        loss_terms: Mean of each term of the loss; empty if the loss has one term.
        best_dice: Highest mean Dice of all validations so far; None before the first.
        best_step: The step of that validation.
        seconds_left: Estimated seconds until the training ends; None before they can be estimated.
    """

    step: int
    steps: int | None
    loss: float
    lr: float
    seconds_per_step: float
    samples_per_second: float
    data_wait_fraction: float
    val_dice: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    loss_terms: Mapping[str, float] = field(default_factory=dict)
    best_dice: float | None = None
    best_step: int | None = None
    seconds_left: float | None = None

    @property
    def is_best(self) -> bool:
        """Whether the validation of this report is the best so far."""
        return bool(self.val_dice) and self.best_step == self.step

    @property
    def mean_dice(self) -> float | None:
        """The mean of `val_dice` over labels that occurred; None without validation."""
        values = [value for value in self.val_dice.values() if not math.isnan(value)]
        return sum(values) / len(values) if values else None

    def __str__(self) -> str:
        text = (
            f"step {self.step}/{self.steps or '?'}  loss {self.loss:.4f}  lr {self.lr:.2e}  "
            f"{self.seconds_per_step:.3f} s/step  {self.samples_per_second:.1f} samples/s  data wait {self.data_wait_fraction:.0%}"
        )
        if self.mean_dice is not None:
            text += f"  patch Dice {self.mean_dice:.3f} ({_listed(self.val_dice)})"
        if self.is_best:
            text += "  (best so far)"
        elif self.best_dice is not None:
            text += f"  best {self.best_dice:.3f} at step {self.best_step}"
        if self.seconds_left is not None:
            text += f"  {timedelta(seconds=round(self.seconds_left))} left"
        return text


def _listed(dice: Mapping[str, float]) -> str:
    """Return the Dice of each label as text; of many labels, only the lowest values."""
    known = {name: value for name, value in dice.items() if not math.isnan(value)}
    if len(dice) <= _MOST_LISTED:
        return ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    lowest = sorted(known, key=lambda name: known[name])[:_LOWEST_LISTED]
    return f"{len(known)} labels seen; " + ", ".join(f"{name} {known[name]:.3f}" for name in lowest) + " ..."


@dataclass
class BestValidation:
    """The best validation so far.

    Attributes:
        dice: Its mean Dice.
        step: Its step; None before the first validation.
        without_gain: Number of validations since then, none of which was better.
    """

    dice: float = -math.inf
    step: int | None = None
    without_gain: int = 0

    @classmethod
    def resumed(cls, values: Mapping[str, Any], folder: Path) -> Self:
        """Return the best validation of a training that is resumed; it starts anew if its model is gone.

        Args:
            values: The values of a checkpoint.
            folder: The model folder of the best validation.

        Returns:
            The best validation so far.
        """
        best = cls(**values)
        if best.step is None or is_complete(folder):
            return best
        warn_once(
            f"{folder}: found it damaged or missing, expected the model of the best validation so far (step {best.step}). Training "
            "goes on; the next validation counts as the best."
        )
        return cls(without_gain=best.without_gain)

    def update(self, dice: float, step: int) -> bool:
        """Record a validation and return whether it is the best so far."""
        if dice > self.dice:
            self.dice, self.step, self.without_gain = dice, step, 0
            return True
        self.without_gain += 1
        return False


def _now() -> float:
    return time.perf_counter()


@dataclass
class Meter:
    """Losses and times since the last report.

    Attributes:
        losses: Loss of each step.
        loss_terms: Terms of the loss of each batch, as numbers or tensors.
        waited: Seconds of waiting for patches.
        began: When the first step began, by the clock of `time.perf_counter`.
    """

    losses: list[float] = field(default_factory=list)
    loss_terms: list[dict[str, Any]] = field(default_factory=list)
    waited: float = 0.0
    began: float = field(default_factory=_now)

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint, so that a resumed training reports the same figures."""
        terms = [{name: float(value) for name, value in parts.items()} for parts in self.loss_terms]
        seconds = time.perf_counter() - self.began
        return {"losses": list(self.losses), "loss_terms": terms, "waited": self.waited, "seconds": seconds}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Meter:
        """Return the meter of a checkpoint, as if its last step had just ended."""
        began = time.perf_counter() - float(state["seconds"])
        return cls(list(state["losses"]), list(state["loss_terms"]), float(state["waited"]), began)


class ReportLog:
    """``metrics.jsonl`` and TensorBoard events of a run.

    Args:
        run: Run folder.
        resume_step: Last step whose report is kept; later reports are dropped, because they will be written again.
        silent: Write nothing; for all processes except the main one.
    """

    def __init__(self, run: Path, resume_step: int, *, silent: bool = False) -> None:
        self.silent = silent
        if silent:
            return
        from torch.utils.tensorboard import SummaryWriter

        _ignore_errors_of_the_writer()
        self.path = run / METRICS
        rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        with self._write_errors_converted(), contextlib.ExitStack() as stack:
            self._file = stack.enter_context(self.path.open("a", encoding="utf-8"))
            self._board = SummaryWriter(str(run), purge_step=resume_step + 1 if resume_step else None)
            stack.pop_all()  # both are open now, until `close`

    def add(self, report: Report) -> None:
        """Append one report; NaN becomes null."""
        if self.silent:
            return
        row = {
            key: value
            for key, value in asdict(report).items()
            if key not in _OPTIONAL or value not in ({}, None)
        }
        if report.mean_dice is not None:
            row["mean_dice"] = report.mean_dice
        with self._write_errors_converted():
            self._file.write(json.dumps(_without_nan(row)) + "\n")
            self._file.flush()
            self._draw(report)

    def _draw(self, report: Report) -> None:
        board, step = self._board, report.step
        board.add_scalar("train/loss", report.loss, step)
        board.add_scalar("train/lr", report.lr, step)
        board.add_scalar("time/seconds_per_step", report.seconds_per_step, step)
        board.add_scalar("time/samples_per_second", report.samples_per_second, step)
        board.add_scalar("time/data_wait_fraction", report.data_wait_fraction, step)
        for name, value in report.loss_terms.items():
            board.add_scalar(f"loss/{name}", value, step)
        for name, value in report.val_dice.items():
            board.add_scalar(f"validation/dice_{name}", value, step)
        if report.mean_dice is not None:
            board.add_scalar("validation/dice_mean", report.mean_dice, step)

    def add_image(self, name: str, rgb: NDArray[np.uint8], step: int) -> None:
        """Add an RGB image `(H, W, 3)`."""
        if not self.silent:
            with self._write_errors_converted():
                self._board.add_image(name, rgb, step, dataformats="HWC")

    def close(self) -> None:
        """Flush both files."""
        if self.silent:
            return
        with self._write_errors_converted():
            try:
                self._file.close()
            finally:
                self._board.close()

    @contextlib.contextmanager
    def _write_errors_converted(self) -> Iterator[None]:
        """Convert an `OSError`, such as that of a full disk; one in TensorBoard's thread is raised by its next write."""
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error


@functools.cache
def _ignore_errors_of_the_writer() -> None:
    """Print no traceback of an `OSError` in TensorBoard's thread, such as that of a full disk: its next write raises it."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    others = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.thread, _AsyncWriterThread) and isinstance(failed.exc_value, OSError)):
            others(failed)

    threading.excepthook = hook


def mean_loss_terms(steps: Sequence[Mapping[str, SupportsFloat]]) -> dict[str, float]:
    """Return the mean over `steps` of each loss term, without values that are not finite; empty for a single term."""
    if not steps or len(steps[0]) < 2:
        return {}
    names = dict.fromkeys(name for parts in steps for name in parts)
    values = {name: [float(parts[name]) for parts in steps if name in parts] for name in names}
    finite = {name: [value for value in found if math.isfinite(value)] for name, found in values.items()}
    return {name: sum(found) / len(found) for name, found in finite.items() if found}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ``metrics.jsonl``; a line that is damaged, or was cut off by a crash, is left out.

    Args:
        path: The file, which may be missing.

    Returns:
        One row per report.
    """
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = parse_json(line)
                if _is_report(row):
                    rows.append(row)
    return rows


def _is_report(row: Any) -> bool:
    """Return whether the values of a line are those of a report: a step, and numbers where the line has figures."""
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    figures = [row["step"], *(row.get(key) for key in ("loss", "mean_dice"))]
    return all(
        one is None or isinstance(one, float) or (type(one) is int and abs(one) <= _LARGEST_EXACT)
        for one in figures
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
