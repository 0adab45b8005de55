"""How often intervals cover the true mean, and how often tests reject: simulated studies with known truth.

    python benchmarks/simulated_studies.py --studies 2000

A study draws the Dice of n subjects. Three populations are simulated: Dice near 1 (skewed), a normal distribution, and Dice of
which one in twenty is a failure with Dice 0. Prints a table of coverage (claimed: 95 %), of all studies and of those in which a
subject fails, then one of the share of studies in which the paired test rejects at the level of 5 %, for two equal methods and
for a difference of 0.01.

The table ends with the reach of the intervals of studies without a failure: how many standard errors below the mean of the study
they would have to extend to contain the true mean of a population in which one in twenty fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medseg.evaluation.statistics.agreement import LIMIT_SD, Agreement
from medseg.evaluation.statistics.bootstrap import Interval, resampled_means
from medseg.evaluation.statistics.paired_tests import paired_differences

SUBJECTS = (10, 20, 40, 200)
DIFFERENCE, PAIR_SD = 0.01, 0.03
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


def with_failures(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return Dice values of which one in twenty is 0."""
    return np.where(random.random(shape) < 0.05, 0.0, random.beta(20, 2, shape))


POPULATIONS: dict[str, tuple[Draw, float]] = {
    "Dice near 1, beta(20, 2)": (lambda random, shape: random.beta(20, 2, shape), 20 / 22),
    "normal": (lambda random, shape: random.normal(0.8, 0.1, shape), 0.8),
    "one in 20 fails": (with_failures, 0.95 * 20 / 22),
}


def covered_studies(draw: Draw, truth: float, subjects: int, studies: int) -> NDArray[np.bool_]:
    """Return, for each study `(studies, 2)`, whether its interval contains the true mean, and whether a subject fails."""
    random = np.random.default_rng(subjects)
    names = [str(number) for number in range(subjects)]
    found = []
    for start in range(0, studies, 500):
        values = draw(random, (subjects, min(500, studies - start)))
        draws = resampled_means(values, names, seed=start)
        covered = [truth in Interval.from_draws(study, subjects) for study in draws.T]
        found.append(np.stack([covered, (values == 0).any(axis=0)], axis=1))
    return np.concatenate(found)


def needed_reach(subjects: int) -> float:
    """Return how many standard errors the mean of a study without failures is above the true mean with failures, on average."""
    (_, one), (_, failing) = POPULATIONS["Dice near 1, beta(20, 2)"], POPULATIONS["one in 20 fails"]
    error = float(np.sqrt(one * (1 - one) / (20 + 2 + 1) / subjects))
    return (one - failing) / error


def agreement_coverage(subjects: int, studies: int) -> tuple[float, float]:
    """Return the shares of studies of normal differences whose intervals contain the true bias, and the true upper limit."""
    random, names = np.random.default_rng(2000 + subjects), [str(number) for number in range(subjects)]
    covered = np.zeros(2)
    for differences in random.normal(0, 1, (studies, subjects)):
        found = Agreement.of(differences, np.zeros(subjects), names)
        covered += (0 in found.bias_interval, LIMIT_SD in found.high_interval)
    bias, limit = covered / studies
    return float(bias), float(limit)


def rejections(difference: float, subjects: int, studies: int) -> tuple[float, float]:
    """Return the share of studies in which the permutation test and the Wilcoxon test reject."""
    random = np.random.default_rng(1000 + subjects)
    names = [str(number) for number in range(subjects)]
    counts = np.zeros(2)
    for _ in range(studies):
        base = random.beta(20, 2, (subjects, 1))
        other = base + random.normal(difference, PAIR_SD, base.shape)
        (found,) = paired_differences(other, base, ["label"], names)
        counts += (found.permutation < 0.05, found.wilcoxon < 0.05)
    permutation, wilcoxon = counts / studies
    return float(permutation), float(wilcoxon)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--studies", type=int, default=2000, help="simulated studies per cell (default: 2000)"
    )
    studies = parser.parse_args().studies
    print(f"coverage of 95 % intervals, {studies} studies per cell")
    print("| population | " + " | ".join(f"n = {n}" for n in SUBJECTS) + " |")
    print("|---|" + "---|" * len(SUBJECTS))
    for name, (draw, truth) in POPULATIONS.items():
        found = [covered_studies(draw, truth, n, studies) for n in SUBJECTS]
        _print_row(name, [one[:, 0].mean() for one in found])
        if draw is with_failures:
            _print_row("… studies in which a subject fails", [one[:, 1].mean() for one in found])
            _print_row("… coverage of these", [one[one[:, 1], 0].mean() for one in found])
    reach = " | ".join(f"{needed_reach(n):.1f}" for n in SUBJECTS)
    print(f"| standard errors from the mean of a study without failures | {reach} |")
    agreements = [agreement_coverage(n, studies) for n in SUBJECTS]
    _print_row("bias, normal differences", [bias for bias, _ in agreements])
    _print_row("limit of agreement, normal differences", [limit for _, limit in agreements])
    print(
        f"\nrejected at 5 %, paired differences with standard deviation {PAIR_SD}, {studies} studies per cell"
    )
    print("| difference | test | " + " | ".join(f"n = {n}" for n in SUBJECTS) + " |")
    print("|---|---|" + "---|" * len(SUBJECTS))
    for difference in (0.0, DIFFERENCE):
        rejected = [rejections(difference, n, studies) for n in SUBJECTS]
        for place, test in enumerate(("permutation", "Wilcoxon")):
            _print_row(f"{difference:g} | {test}", [one[place] for one in rejected])


def _print_row(name: str, shares: Sequence[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
