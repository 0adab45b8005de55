"""Which of several cross-validated experiments to take: the highest foreground-mean Dice over all held-out cases, as
nnU-Net chooses its best configuration (Isensee et al. 2021), and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.evaluation.cross_validation.bootstrap import Interval, mean_of_known, resampled_means
from medseg.runtime.formatting import pluralise
from medseg.runtime.text_tables import html_table, text_table
from medseg.storage.atomic import write_text
from medseg.storage.tsv import read_tsv, to_tsv

_DIGITS = 5  # in which equals are equal


@dataclass(frozen=True)
class RankedRun:
    """One experiment, or an ensemble of several.

    Attributes:
        runs: its folder, or those of its members. dice: foreground mean over all held-out cases; interval: of it.
        difference: Dice less that of the best. difference_interval: of the same draws of subjects for both.
    """

    runs: tuple[str, ...]
    dice: float
    interval: Interval
    difference: float
    difference_interval: Interval

    @property
    def run(self) -> str:
        """The folders in one line."""
        return " + ".join(self.runs)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Cross-validated experiments side by side, in the order that they were given.

    Attributes:
        ranked: the experiments. cases, subjects: how many all of them were measured on.
    """

    ranked: tuple[RankedRun, ...]
    cases: int
    subjects: int

    @property
    def best(self) -> RankedRun:
        """The one with the highest Dice; the first of equals."""
        return max(self.ranked, key=lambda candidate: round(candidate.dice, _DIGITS))

    def write_tsv(self, path: str | Path) -> None:
        """Write one row an experiment as tab-separated text with a header.

        Raises:
            DataError: the file cannot be written.
        """
        columns = ("run", "dice", "low", "high", "difference", "difference_low", "difference_high")
        rows = []
        for one in self.ranked:
            own, apart = one.interval, one.difference_interval
            rows.append([one.run, one.dice, own.low, own.high, one.difference, apart.low, apart.high])
        write_text(path, to_tsv(columns, rows))

    def __repr__(self) -> str:
        return text_table(self._cells(), self._notes())

    def _repr_html_(self) -> str:
        return html_table(self._cells(), self._notes())

    def _cells(self) -> list[list[str]]:
        rows = [["run", "mean Dice", "95 % interval", "less than best", "95 % interval"]]
        for one in self.ranked:
            apart = ["", ""] if one is self.best else [f"{one.difference:+.4f}", str(one.difference_interval)]
            rows.append([one.run, f"{one.dice:.4f}", str(one.interval), *apart])
        return rows

    def _notes(self) -> list[str]:
        unsure = [c.run for c in self.ranked if c is not self.best and 0 in c.difference_interval]
        doubt = f"; not clearly better than {', '.join(unsure)}" if unsure else ""
        return [
            f"{pluralise(self.cases, 'case')} of {pluralise(self.subjects, 'subject')}",
            f"take {self.best.run}{doubt}",
        ]


@dataclass(frozen=True)
class RunScores:
    """What a cross-validation, or an ensemble of several, has reached on every case.

    Attributes:
        runs: its folder, or those of its members.
        dice: `(cases, labels)` by sorted case id and name. labels: the names.
        subjects: case id → person.
    """

    runs: tuple[str, ...]
    dice: NDArray[np.float64]
    labels: tuple[str, ...]
    subjects: dict[str, str]


def compare_cross_validations(runs: Sequence[str | Path]) -> Comparison:
    """Compare what cross-validations have left in ``RUN/evaluation``.

    Args:
        runs: folders, at least two.

    Raises:
        ConfigError: fewer than two.
        DataError: a run has not been gathered, or was measured on other cases or labels than the first.
    """
    return compare_scores(load_comparable_scores(runs))


def load_comparable_scores(runs: Sequence[str | Path]) -> list[RunScores]:
    """What each run has left; see `compare_cross_validations`."""
    if len(runs) < 2:
        raise ConfigError(
            f"compare: found {pluralise(len(runs), 'run')}, expected at least two. Give the runs to compare."
        )
    twice = [run for number, run in enumerate(runs) if _resolved(run) in map(_resolved, runs[:number])]
    if twice:
        raise ConfigError(f"compare: found {twice[0]} twice, expected different runs. Remove one of them.")
    read = [_load_scores(Path(run)) for run in runs]
    first = read[0]
    for other in read:
        for what, mine, theirs in (
            ("cases", first.subjects.keys(), other.subjects.keys()),
            ("labels", set(first.labels), set(other.labels)),
        ):
            if mine != theirs:
                apart = sorted(mine ^ theirs)
                more = " ..." if len(apart) > 3 else ""
                raise DataError(
                    f"{other.runs[0]}: {what}: found others than {first.runs[0]} has ({', '.join(apart[:3])}{more}), expected the same, "
                    "because means over others say nothing. Cross-validate both on the same cases and labels."
                )
    return read


def _resolved(run: str | Path) -> Path:
    return Path(run).resolve()


def compare_scores(measured: Sequence[RunScores]) -> Comparison:
    """Compare figures of the same cases and labels."""
    first = measured[0]
    subjects = [first.subjects[case] for case in sorted(first.subjects)]
    dice = [float(mean_of_known(mean_of_known(one.dice.T)[None])[0]) for one in measured]
    draws = [mean_of_known(resampled_means(one.dice, subjects)) for one in measured]
    best = int(np.argmax(np.round(dice, _DIGITS)))
    ranked = [
        RankedRun(
            one.runs,
            own,
            Interval.from_draws(drawn),
            own - dice[best],
            Interval.from_draws(drawn - draws[best]),
        )
        for one, own, drawn in zip(measured, dice, draws, strict=True)
    ]
    return Comparison(tuple(ranked), len(subjects), len(set(subjects)))


def _load_scores(run: Path) -> RunScores:
    folder = run / "evaluation"
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        subjects = {str(case): str(subject) for case, subject in summary["subjects"].items()}
        rows = [row.cells for row in read_tsv(folder / "cases.tsv").rows]
        dice = {(row["case"], row["label"]): float(row["dice"]) for row in rows}
        labels = tuple(sorted({row["label"] for row in rows}))
        table = [[dice[case, name] for name in labels] for case in sorted(subjects)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, DataError) as error:
        if not (run / "fold_0").is_dir():
            raise DataError(
                f"{run}: found no cross-validation, expected one. Make it with: medseg train CONFIG --run NEW --all-folds."
            ) from None
        reason = "missing" if isinstance(error, OSError) else f"damaged: {error}"
        raise DataError(
            f"{folder}: the table of the cross-validation is {reason}. Make it with: medseg train --resume {run}."
        ) from None
    return RunScores((str(run),), np.array(table, dtype=np.float64), labels, subjects)
