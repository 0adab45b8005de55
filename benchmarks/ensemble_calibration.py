"""How calibration changes from the networks of the folds to their ensemble, on images that no fold has seen.

    python benchmarks/ensemble_calibration.py --steps 200

Temperatures are fitted on the predictions of single networks, each of the cases that it was not trained on, and are used for
the ensemble of all folds, whose logits are their mean. This trains a cross-validation on phantoms and measures single
networks and their ensemble on new phantoms, without and with the temperatures. The last row fits one temperature to the
ensemble on half of the new phantoms and measures it on the other half.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import write_phantoms
from medseg.evaluation.calibration.reliability import brier_score, calibration_error, reliability
from medseg.evaluation.calibration.temperature import Temperatures, fit_temperature, probabilities
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder
from medseg.inference.predictor import Predictor
from medseg.inference.uncertainty.logit_sample import VoxelSample, output_members

SHAPE, SPACING = (48, 40, 36), (6.5, 7.0, 7.0)


def train(folder: Path, cases: int, steps: int) -> RunFolder:
    """Train five folds on phantoms and aggregate them."""
    write_phantoms(folder / "data", cases=cases, shape=SHAPE, spacing=SPACING)
    experiment = Experiment.parse(
        {
            "name": "phantoms",
            "data": {"path": str(folder / "data"), "folds": 5},
            "model": {"name": "unet_3d", "channels": [8, 16, 32], "num_blocks": 1},
            "patch": {"size": [24, 24, 24]},
            "train": {"steps": steps, "validation_batches": 1, "optimizer": {"lr": 0.02}},
        }
    )
    for _ in experiment.cross_validation(folder / "run"):
        pass
    return RunFolder(folder / "run")


def sampled(predictor: Predictor, cases: Sequence[Case]) -> list[VoxelSample]:
    """Return the voxels near foreground of each case."""
    found = []
    for case in cases:
        sampler = predictor.logit_sampler(case)
        predictor.run(predictor.prepare(case), sampler=sampler)
        sample = sampler.sample()
        found.append(sample.chosen(sample.near))
    return found


def row(name: str, samples: Sequence[VoxelSample], temperatures: Temperatures, labels: medseg.Labels) -> str:
    """Return a row of the table: accuracy, mean probability, ECE and Brier score near foreground."""
    one = VoxelSample.joined(list(samples))
    p = probabilities(one.logits, temperatures, regions=False)
    inside, rows, predicted = output_members(labels)[one.reference], np.arange(len(p)), one.logits.argmax(-1)
    confidence, right = p[rows, predicted], inside[rows, predicted]
    accuracy = np.average(right, weights=one.weight)
    mean = np.average(confidence, weights=one.weight)
    ece = calibration_error(reliability(confidence, right, one.weight))
    brier = brier_score(p, inside, one.weight, regions=False)
    return f"| {name} | {accuracy:.3f} | {mean:.3f} | {ece:.2%} | {brier:.4f} |"


def main() -> None:
    """Train, predict new phantoms and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20, help="phantoms of the cross-validation")
    parser.add_argument("--new", type=int, default=20, help="new phantoms")
    parser.add_argument("--steps", type=int, default=200, help="steps per fold")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = train(folder, options.cases, options.steps)
        write_phantoms(folder / "new", cases=options.new, seed=1000, shape=SHAPE, spacing=SPACING)
        cases = medseg.read_dataset(folder / "new").cases
        ensemble = medseg.load(run.model, device="cpu")
        temperatures, labels = ensemble.saved.temperatures, ensemble.labels
        together = sampled(ensemble, cases)
        alone = [
            one
            for fold in range(5)
            for one in sampled(medseg.load(run.fold(fold).model, device="cpu"), cases)
        ]
    members, half = output_members(labels), options.new // 2
    own = fit_temperature(VoxelSample.joined(together[:half]), members, regions=False)
    shown = ", ".join(f"{one:.3g}" for one in temperatures)
    print(f"temperatures of the cross-validation: {shown}; one fitted to the ensemble: {own[0]:.3g}\n")
    print("| networks | accuracy | mean probability | ECE | Brier score |")
    print("|---|---|---|---|---|")
    print(row("single networks", alone, (), labels))
    print(row("single networks, with temperatures", alone, temperatures, labels))
    print(row("ensemble", together, (), labels))
    print(row("ensemble, with temperatures", together, temperatures, labels))
    print(row("ensemble, with a temperature of its own", together[half:], own, labels))


if __name__ == "__main__":
    main()
