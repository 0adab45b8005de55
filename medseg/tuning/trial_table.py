"""What is known of the trials of a search: a table, a figure, and the best settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg.runtime.text_tables import text_table
from medseg.storage.atomic import replacing, write_text
from medseg.storage.tsv import to_tsv

State = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        name: ``default``, or ``trial_000`` and so on: the name of its run folder.
        values: Value by key; the default's own values.
        state: Whether it was trained to the end, ended early, or failed.
        dice: Mean Dice of its last validation; NaN if there was none.
        steps: Steps that were trained.
        message: Why it failed.
    """

    name: str
    values: dict[str, Any]
    state: State
    dice: float = math.nan
    steps: int = 0
    message: str = ""


@dataclass(frozen=True)
class TrialTable:
    """All trials of a search so far.

    Attributes:
        default: The training with the experiment's own settings.
        trials: The trials in their order.
        keys: The keys that are varied.
    """

    default: Trial
    trials: Sequence[Trial]
    keys: Sequence[str] = field(default=())

    @property
    def best(self) -> Trial | None:
        """The finished trial with the highest Dice, if that is above the default's; None otherwise."""
        finished = [one for one in self.trials if one.state == "finished" and not math.isnan(one.dice)]
        best = max(finished, key=lambda one: one.dice, default=None)
        above = best is not None and (math.isnan(self.default.dice) or best.dice > self.default.dice)
        return best if above else None

    def __str__(self) -> str:
        rows = [["trial", "state", "Dice", "steps", *self.keys]]
        ranked = sorted(self.trials, key=lambda one: (one.state != "finished", -_or_low(one.dice)))
        for one in (self.default, *ranked):
            rows.append(
                [
                    one.name,
                    one.state,
                    f"{one.dice:.4f}",
                    str(one.steps),
                    *(_text(one.values.get(key)) for key in self.keys),
                ]
            )
        return text_table(rows)

    def verdict(self) -> str:
        """Return a sentence that says whether a trial was better than the default settings."""
        best, default = self.best, self.default
        if best is None:
            return f"no trial was better than the default settings (Dice {default.dice:.4f})"
        values = " ".join(f"{key}={_text(value)}" for key, value in best.values.items())
        return (
            f"{best.name} was better than the default settings by {best.dice - default.dice:.4f} ({default.dice:.4f} to "
            f"{best.dice:.4f}): {values}. It is the best of {len(self.trials)}, so expect a smaller gain; compare both with a "
            "cross-validation"
        )

    def write(self, folder: Path) -> None:
        """Write ``trials.tsv`` and ``trials.png``.

        Args:
            folder: Existing folder.

        Raises:
            DataError: The files cannot be written.
        """
        columns = ["trial", "state", "dice", "steps", *self.keys, "message"]
        rows = [
            [
                one.name,
                one.state,
                one.dice,
                one.steps,
                *(_text(one.values.get(key)) for key in self.keys),
                one.message,
            ]
            for one in (self.default, *self.trials)
        ]
        write_text(folder / "trials.tsv", to_tsv(columns, rows))
        with replacing(folder / "trials.png") as temporary:
            _draw(self, temporary)


def _draw(table: TrialTable, path: Path) -> None:
    """Draw the Dice of the trials against each key, with the default as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(table.keys))
    lines = math.ceil(len(table.keys) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [one for one in table.trials if not math.isnan(one.dice)]
    for number, key in enumerate(table.keys, start=1):
        axes = figure.add_subplot(lines, columns, number)
        values = [one.values.get(key) for one in shown]
        numbers = [
            value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        names = sorted({_text(value) for value in values})
        places = values if len(numbers) == len(values) else [names.index(_text(value)) for value in values]
        if places is not values:
            axes.set_xticks(range(len(names)), names)
        for state, marker in (("finished", "o"), ("pruned", "x")):
            chosen = [(x, one.dice) for x, one in zip(places, shown, strict=True) if one.state == state]
            if chosen:
                axes.plot(*zip(*chosen, strict=True), marker, color="#1f6f8b", label=state)
        if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 30:
            axes.set_xscale("log")
        if not math.isnan(table.default.dice):
            axes.axhline(table.default.dice, color="#c0392b", linewidth=1, label="default settings")
        axes.set_xlabel(key)
        axes.set_ylabel("validation Dice")
        if number == 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, format="png")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _or_low(value: float) -> float:
    return -math.inf if math.isnan(value) else value
