"""How often intervals cover the true mean, and how often tests reject: simulated studies with known truth.

    python benchmarks/simulated_studies.py --studies 2000

A study draws the Dice of n subjects. Three populations are simulated: Dice near 1 (skewed), a normal distribution, and Dice of
which one in twenty is a failure with Dice 0. Prints a table of coverage (claimed: 95 %), then one of the share of studies in
which the paired test rejects at the level of 5 %, for two equal methods and for a difference of 0.01.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


def coverage(draw: Draw, truth: float, subjects: int, studies: int) -> float:
    """Return the share of studies whose interval contains the true mean."""
    random = np.random.default_rng(subjects)
    names = [str(number) for number in range(subjects)]
    covered = 0
    for start in range(0, studies, 500):
        values = draw(random, (subjects, min(500, studies - start)))
        draws = resampled_means(values, names, seed=start)
        covered += sum(truth in Interval.from_draws(study, subjects) for study in draws.T)
    return covered / studies


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
        shares = [coverage(draw, truth, n, studies) for n in SUBJECTS]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)
    print(
        f"\nrejected at 5 %, paired differences with standard deviation {PAIR_SD}, {studies} studies per cell"
    )
    print("| difference | test | " + " | ".join(f"n = {n}" for n in SUBJECTS) + " |")
    print("|---|---|" + "---|" * len(SUBJECTS))
    for difference in (0.0, DIFFERENCE):
        found = [rejections(difference, n, studies) for n in SUBJECTS]
        for place, test in enumerate(("permutation", "Wilcoxon")):
            cells = " | ".join(f"{one[place]:.1%}" for one in found)
            print(f"| {difference:g} | {test} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
