"""Ranking of cross-validated runs by the foreground mean of a metric over all held-out cases, with confidence intervals.

nnU-Net selects its best configuration by the foreground-mean Dice (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import ConfigError, DataError
from medseg.evaluation.cross_validation.run_scores import RunScores, read_run_scores
from medseg.evaluation.label_maps.metric_catalog import CATALOG, MetricInfo
from medseg.evaluation.statistics.bootstrap import Interval, mean_of_known, resampled_means
from medseg.evaluation.statistics.paired_tests import PairedDifference, paired_differences
from medseg.evaluation.statistics.table_intervals import subjects_note, unseen_failures_note
from medseg.runtime.formatting import pluralise
from medseg.runtime.text_tables import html_table, text_table
from medseg.storage.atomic import write_text
from medseg.storage.tsv import to_tsv

_DIGITS = 5  # two means that agree in these digits are equal


@dataclass(frozen=True)
class ComparedRun:
    """A run, or an ensemble of several.

    Attributes:
        runs: The folder of the run, or the folders of the members of the ensemble.
        mean: Foreground mean of the metric over all held-out cases.
        interval: 95 % interval of `mean`.
        difference: Mean minus the mean of the best run.
        difference_interval: 95 % interval of the difference, from the same resamples of subjects for both runs.
        share_first: Share of the resamples of subjects in which this run is the best, which shows how stable the ranking
            is; resamples with several best runs are divided equally among these.
        by_label: Difference to the best run for each label, with tests; empty for the best run. Wins are subjects in which this
            run is better than the best one.
    """

    runs: tuple[str, ...]
    mean: float
    interval: Interval
    difference: float
    difference_interval: Interval
    share_first: float
    by_label: tuple[PairedDifference, ...] = ()

    @property
    def run(self) -> str:
        """The folders in one line."""
        return " + ".join(self.runs)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The comparison of cross-validated runs with the best of them.

    Attributes:
        runs: The runs, in the order in which they were given.
        cases: Number of cases on which all runs were evaluated.
        subjects: Number of subjects of these cases.
        scores: The metric of every case of each run, in the order of the runs.
        metric: Name of the metric.
    """

    runs: tuple[ComparedRun, ...]
    cases: int
    subjects: int
    scores: tuple[RunScores, ...] = ()
    metric: str = "dice"

    @property
    def info(self) -> MetricInfo:
        """How the metric is shown, and which values are better."""
        return CATALOG[self.metric]

    @property
    def best(self) -> ComparedRun:
        """The run with the best mean; the first of equals."""
        sign = 1 if self.info.higher_is_better else -1
        return max(self.runs, key=lambda candidate: round(sign * candidate.mean, _DIGITS))

    def write_tsv(self, path: str | Path) -> None:
        """Write one row per run as tab-separated text with a header.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        columns = (
            "run",
            self.metric,
            "low",
            "high",
            "difference",
            "difference_low",
            "difference_high",
            "share_first",
        )
        rows = []
        for one in self.runs:
            own, lag = one.interval, one.difference_interval
            rows.append(
                [one.run, one.mean, own.low, own.high, one.difference, lag.low, lag.high, one.share_first]
            )
        write_text(path, to_tsv(columns, rows))

    def write_labels_tsv(self, path: str | Path) -> None:
        """Write one row for each label of each run but the best: its difference to the best run, with tests.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be written.
        """
        columns = ("run", "label", "subjects", "difference", "low", "high", "wins", "losses")
        tests = ("wilcoxon_p", "permutation_p", "holm_p", "effect")
        rows = []
        for one in self.runs:
            for d in one.by_label:
                counts = [d.subjects, d.mean, d.interval.low, d.interval.high, d.wins, d.losses]
                rows.append([one.run, d.name, *counts, d.wilcoxon, d.permutation, d.holm, d.effect])
        write_text(path, to_tsv((*columns, *tests), rows))

    def __repr__(self) -> str:
        tables = [text_table(self._cells(), self._notes())]
        tables += [text_table(self._label_cells(one), [_TESTS]) for one in self.runs if one.by_label]
        return "\n\n".join(tables)

    def _repr_html_(self) -> str:
        tables = [html_table(self._label_cells(one), [_TESTS]) for one in self.runs if one.by_label]
        return html_table(self._cells(), self._notes()) + "".join(tables)

    def _cells(self) -> list[list[str]]:
        rows = [
            ["run", f"mean {self.info.title}", "95 % interval", "less than best", "95 % interval", "first in"]
        ]
        for one in self.runs:
            difference = (
                ["", ""] if one is self.best else [f"{one.difference:+.4f}", str(one.difference_interval)]
            )
            rows.append(
                [one.run, f"{one.mean:.4f}", str(one.interval), *difference, f"{one.share_first:.0%}"]
            )
        return rows

    def _label_cells(self, one: ComparedRun) -> list[list[str]]:
        """Return a header and one row per label with the difference to the best run."""
        title = self.info.title
        rows = [[f"{one.run} - best", "subjects", title, "95 % interval", "wins", "losses", "p", "effect"]]
        for found in one.by_label:
            numbers = [str(found.subjects), f"{found.mean:+.4f}", str(found.interval), str(found.wins)]
            rows.append(
                [found.name, *numbers, str(found.losses), f"{found.holm:.4f}", f"{found.effect:+.2f}"]
            )
        return rows

    def _notes(self) -> list[str]:
        unsure = [c.run for c in self.runs if c is not self.best and 0 in c.difference_interval]
        doubt = f"; not clearly better than {', '.join(unsure)}" if unsure else ""
        notes = [
            f"{pluralise(self.cases, 'case')} of {subjects_note(self.subjects)}",
            f"best: {self.best.run}{doubt}",
            *filter(None, [unseen_failures_note(self.subjects)]),
        ]
        return [*notes, f"evaluated with {self.options_in_words}"] if self.options_in_words else notes

    @property
    def options_in_words(self) -> str:
        """The options of the evaluations on which the metric depends; empty if they are not known."""
        options = self.scores[0].options if self.scores else {}
        return ", ".join(f"{name} {_option_text(value)}" for name, value in options.items())


_TESTS = "p by exchanging the runs within subjects, Holm's correction over the labels; effect: rank-biserial correlation"


def compare_cross_validations(runs: Sequence[str | Path], metric: str = "dice") -> Comparison:
    """Compare the results that cross-validations have written to ``RUN/evaluation``.

    Args:
        runs: At least two folders.
        metric: Name of a column of ``cases.tsv`` whose values are better the higher, or the lower, they are.

    Returns:
        The ranking.

    Raises:
        ConfigError: There are fewer than two runs, one is given twice, the metric cannot be ranked, or the runs were
            evaluated with different options on which the metric depends.
        DataError: A run has no results yet, or its cases or labels differ from those of the first.
    """
    return compare_scores(load_comparable_scores(runs, checked_metric(metric)))


def checked_metric(metric: str) -> str:
    """Return the name of a metric, or raise `ConfigError` unless runs can be ranked by it."""
    ranked = [name for name, info in CATALOG.items() if info.higher_is_better is not None]
    if metric not in ranked:
        raise ConfigError(f"metric: found {metric!r}, expected one of {', '.join(ranked)}. Correct the name.")
    return metric


def load_comparable_scores(runs: Sequence[str | Path], metric: str = "dice") -> list[RunScores]:
    """Return the scores of each run; see `compare_cross_validations`.

    Args:
        runs: At least two folders.
        metric: Name of a column of ``cases.tsv``.

    Returns:
        The scores, in the order of `runs`.
    """
    if len(runs) < 2:
        raise ConfigError(
            f"compare: found {pluralise(len(runs), 'run')}, expected at least two. Give the runs to compare."
        )
    twice = [run for number, run in enumerate(runs) if _resolved(run) in map(_resolved, runs[:number])]
    if twice:
        raise ConfigError(f"compare: found {twice[0]} twice, expected different runs. Remove one of them.")
    read = [read_run_scores(Path(run), metric) for run in runs]
    first = read[0]
    for other in read:
        for what, mine, theirs in (
            ("cases", first.subjects.keys(), other.subjects.keys()),
            ("labels", set(first.labels), set(other.labels)),
        ):
            if mine != theirs:
                differing = sorted(mine ^ theirs)
                more = " ..." if len(differing) > 3 else ""
                raise DataError(
                    f"{other.runs[0]}: {what}: found a difference to {first.runs[0]} ({', '.join(differing[:3])}{more}), expected "
                    "the same, because other means cannot be compared. Cross-validate both on the same cases and labels."
                )
        _require_same_options(first, other)
    return read


def _require_same_options(first: RunScores, other: RunScores) -> None:
    """Raise `ConfigError` if two runs were evaluated with different options on which the metric depends."""
    for name, expected in first.options.items():
        found = other.options[name]
        if found != expected:
            one, two = (Path(scores.runs[0]) / "evaluation" / "summary.json" for scores in (first, other))
            raise ConfigError(
                f"{two}: {name}: found {_option_text(found)}, expected {_option_text(expected)} as in {one}, because "
                f"{first.metric} depends on it. Evaluate both runs with the same options: medseg evaluate RUN "
                f"--{name.replace('_', '-')} VALUE."
            )


def _option_text(value: Any) -> str:
    """Return the value of an option as text: ``automatic`` for None, where the value depends on the image."""
    if value is None:
        return "automatic"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _resolved(run: str | Path) -> Path:
    return Path(run).resolve()


def compare_scores(measured: Sequence[RunScores]) -> Comparison:
    """Compare each run with the best one.

    Args:
        measured: The scores of each run. All must be of the same cases, labels and metric.

    Returns:
        The comparison, with the runs in the order of `measured`.
    """
    first = measured[0]
    subjects = [first.subjects[case] for case in sorted(first.subjects)]
    count = len(set(subjects))
    sign = 1 if CATALOG[first.metric].higher_is_better else -1
    means = [float(mean_of_known(mean_of_known(one.values.T)[None])[0]) for one in measured]
    draws = [mean_of_known(resampled_means(one.values, subjects)) for one in measured]
    best = int(np.argmax(np.round(sign * np.array(means), _DIGITS)))
    ranked = np.round(np.nan_to_num(sign * np.stack(draws), nan=-np.inf), _DIGITS)
    ahead = ranked == ranked.max(axis=0)
    shares = (ahead / ahead.sum(axis=0)).mean(axis=1)  # ties are divided equally
    compared = [
        ComparedRun(
            one.runs,
            means[place],
            Interval.from_draws(draws[place], count),
            means[place] - means[best],
            Interval.from_draws(draws[place] - draws[best], count),
            float(shares[place]),
            () if place == best else _by_label(one, measured[best], subjects, sign),
        )
        for place, one in enumerate(measured)
    ]
    return Comparison(tuple(compared), len(subjects), count, tuple(measured), first.metric)


def _by_label(
    one: RunScores, best: RunScores, subjects: Sequence[str], sign: int
) -> tuple[PairedDifference, ...]:
    """Return the differences to the best run by label; if lower values are better, a win is a smaller value."""
    found = paired_differences(one.values, best.values, one.labels, subjects)
    if sign > 0:
        return tuple(found)
    return tuple(replace(d, wins=d.losses, losses=d.wins, effect=-d.effect) for d in found)
