"""Fine-tuning against training from scratch, and forgetting with and without distillation, on phantoms.

    python benchmarks/fine_tuning.py --work /tmp/fine_tuning --seeds 0 1

A network learns five organs of the phantoms. Then

1. six new cases have three labels, two of which it does not know (stomach and aorta): 200 steps from its weights, with the
   settings of ``medseg plan --from``, are compared with 200 and 1,000 steps from scratch;
2. the same six cases have only the stomach annotated: it is learned with and without ``train.keep_old_labels``, and the five
   old organs are measured before and after.

Prints the mean Dice of each organ over ten other phantoms, for each seed. Networks are small, so that one core suffices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import medseg
from medseg.data.datasets.phantom import phantom_case, write_phantoms
from medseg.experiment.experiment import Experiment
from medseg.planning.plan_dataset import plan
from medseg.planning.plan_options import PlanOptions
from medseg.runtime.text_tables import text_table

OLD = ("liver", "spleen", "right_kidney", "left_kidney", "spine")
THREE = ("liver", "stomach", "aorta")
NEW = ("stomach",)
ALL = (*OLD, "stomach", "aorta")
SHAPE, SPACING = (48, 42, 22), (2.4, 2.4, 5.0)
CASES, TESTED = 6, 10
STEPS, SCRATCH_STEPS, SOURCE_STEPS = 200, 1000, 1500
NETWORK = {"name": "unet_3d", "channels": [8, 16, 32], "num_blocks": 1}
QUIET = {"report_every": 500, "validation_batches": 0, "save_every": 5000, "workers": 0}


def dataset(folder: Path, cases: int, seed: int, organs: Sequence[str]) -> Path:
    """Write phantoms with these labels, and return their folder."""
    write_phantoms(folder, cases, "ct", seed, SHAPE, SPACING, oblique=False, organs=organs)
    return folder


def train(experiment: Experiment, run: Path) -> None:
    """Train unless the run is finished."""
    if not (run / "model").is_dir():
        for _ in experiment.trainer(run):
            pass


def from_scratch(data: Path, steps: int, seed: int) -> Experiment:
    """Return the experiment of a new network, with the planner's optimiser for short trainings."""
    values: dict[str, Any] = {
        "name": "scratch",
        "seed": seed,
        "data": {"path": str(data), "fold": "all"},
        "model": NETWORK,
        "patch": {"size": [32, 32, 16]},
        "augment": {"mirror_axes": []},
        "train": {
            **QUIET,
            "steps": steps,
            "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01, "warmup_steps": 50},
        },
    }
    return Experiment.parse(values)


def from_source(
    data: Path, source: Path, seed: int, *, keep_old_labels: bool, steps: int = STEPS
) -> Experiment:
    """Return the experiment of ``medseg plan --from``, on all cases."""
    options = PlanOptions(start=source, steps=steps, device="cpu", keep_old_labels=keep_old_labels)
    planned = plan(data, options).experiment
    fixed = planned.data.replace(fold="all", folds=5).to_plain()
    train_settings = {**planned.train.to_plain(), **QUIET}
    mirrored = planned.augment.replace(mirror_axes=())
    predicted = planned.predict.replace(mirror_axes=())
    return planned.replace(
        seed=seed, data=fixed, train=train_settings, augment=mirrored.to_plain(), predict=predicted.to_plain()
    )


def dice(run: Path, organs: Sequence[str]) -> dict[str, float]:
    """Return the mean Dice of each organ over phantoms that no training has seen."""
    predictor = medseg.load(run, device="cpu")
    values = {label.name: label.value for label in predictor.labels}
    found: dict[str, list[float]] = {organ: [] for organ in organs}
    for number in range(TESTED):
        image, label = phantom_case((1000, number), "ct", SHAPE, SPACING, oblique=False, organs=ALL)
        predicted = predictor(image).data
        for organ in organs:
            one, other = predicted == values[organ], label.data == 1 + ALL.index(organ)
            found[organ].append(2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum())))
    return {organ: float(np.mean(scores)) for organ, scores in found.items()}


def row(name: str, scores: dict[str, float]) -> tuple[str, ...]:
    """Return the cells of a table: the Dice of each organ and their mean."""
    return (name, *(f"{score:.3f}" for score in scores.values()), f"{np.mean(list(scores.values())):.3f}")


def main() -> None:
    """Run both comparisons for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for datasets and runs, which are reused"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    work = options.work
    many = dataset(work / "old", 20, 1, OLD)
    three, one = dataset(work / "three", CASES, 2, THREE), dataset(work / "one", CASES, 2, NEW)
    for seed in options.seeds:
        runs = work / f"seed_{seed}"
        source = runs / "source"
        train(from_scratch(many, SOURCE_STEPS, seed), source)
        header = ("three labels, six cases", *THREE, "mean")
        scores = []
        for name, experiment in (
            (f"{STEPS} steps from the source", from_source(three, source, seed, keep_old_labels=False)),
            (f"{STEPS} steps from scratch", from_scratch(three, STEPS, seed)),
            (f"{SCRATCH_STEPS} steps from scratch", from_scratch(three, SCRATCH_STEPS, seed)),
        ):
            run = runs / name.replace(" ", "_")
            train(experiment, run)
            scores.append(row(name, dice(run, THREE)))
        print(f"seed {seed}\n{text_table([header, *scores])}\n", flush=True)

        table = [("a new label, six cases", *OLD, "mean of old"), row("before", dice(source, OLD))]
        new = []
        for steps in (STEPS, 2 * STEPS):
            kept = from_source(one, source, seed, keep_old_labels=True, steps=steps)
            without = kept.replace(train={**kept.train.to_plain(), "keep_old_labels": False})
            for name, experiment in (("with", kept), ("without", without)):
                title = f"{steps} steps {name} distillation"
                run = runs / title.replace(" ", "_")
                train(experiment, run)
                table.append(row(title, dice(run, OLD)))
                new.append(f"{title}: stomach {dice(run, NEW)['stomach']:.3f}")
        print(text_table(table, new) + "\n", flush=True)


if __name__ == "__main__":
    main()
