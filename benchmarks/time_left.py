"""Measure how well a training estimates the time that is left, validations, checkpoints and the export included.

python benchmarks/time_left.py configs/phantom/unet_3d.yaml train.steps=300
python benchmarks/time_left.py plan.yaml train.max_time=5m
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from medseg.experiment.experiment import Experiment

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def main() -> None:
    """Train, and print estimated and true times that are left as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    moments: list[tuple[float, int, float | None]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Experiment.load(options.config, *options.overrides).trainer(Path(folder) / "run")
        began = time.perf_counter()

        def note(step: int, steps: int | None) -> None:
            moments.append((time.perf_counter() - began, step, trainer.time_left.seconds(steps)))

        trainer.on_step = note
        for report in trainer:
            print(report, flush=True)
        whole = time.perf_counter() - began
    print(f"\n{len(moments)} steps in {whole:.1f} s; the first after {moments[0][0]:.1f} s\n")
    print("| share of the run | step | estimated left, s | really left, s | error |\n|---|---|---|---|---|")
    for share in SHARES:
        at, step, left = next(moment for moment in moments if moment[0] >= share * whole)
        if left is not None:
            really = whole - at
            print(f"| {share:.0%} | {step} | {left:.1f} | {really:.1f} | {left / really - 1:+.0%} |")


if __name__ == "__main__":
    main()
