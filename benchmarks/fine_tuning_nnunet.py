"""Fine-tune a model that nnU-Net trained on the hippocampus; compare it with that model and with training from scratch.

    python benchmarks/fine_tuning_nnunet.py Task04_Hippocampus --work /tmp/fine_tuning_nnunet

1. nnU-Net trains on its first fold, with a learning rate that falls by its rule over ``--nnunet-minutes``, until its mean Dice
   over the held-out cases is at least ``--target``. The Dice is measured after half of the time and then after every
   ``--slice``; this takes none of the minutes.
2. ``medseg import nnunet`` converts the model. Its logits of a held-out case are compared with nnU-Net's, and its label maps
   of all held-out cases.
3. ``medseg plan --from`` plans ``--minutes`` of fine-tuning, which is trained on the same cases.
4. The same time from scratch is trained twice: with the network that ``medseg plan`` proposes, and with nnU-Net's network
   and the settings of the fine-tuning, except for its weights and learning rates.

All models are evaluated on the same held-out cases. Each stage prints its result as soon as it ends, and an interrupted
benchmark continues with the same ``--work``. The table has the mean Dice of each label, and the mean difference of the
fine-tuned model to each other one with its 95 % interval.

Needs ``pip install medseg[benchmark]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from measurements_page import machine, markdown
from training_nnunet import CONFIGURATION, DATASET, FOLD, link_held_out
from training_turns import call

Figures = dict[str, Any]
WORKERS = Path(__file__).with_name("training.py")
CHECKPOINT = "checkpoint_final"  # the name that `medseg import` expects
MODELS = {
    "nnunet": "nnU-Net's model, predicted by nnU-Net",
    "imported": "nnU-Net's model, imported",
    "scratch": "medseg's network from scratch",
    "same_network": "nnU-Net's network from scratch in medseg",
    "fine_tuned": "nnU-Net's model, fine-tuned",
}
FROM_SCRATCH = {  # as `medseg plan` trains a new U-Net on a processor
    "model.weights": "null",
    "train.optimizer.lr": "0.001",
    "train.optimizer.warmup_steps": "50",
    "train.optimizer.layerwise_lr_decay": "1",
}


def main() -> None:
    """Run the stages that have no result yet, and print the table."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = _parser().parse_args()
    work = options.work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "splits_final.json").is_file():
        call(WORKERS, "prepare_nnunet", data=options.data, work=work)
    train_nnunet(options)
    stage(work, "imported", lambda: import_model(options))
    stage(work, "fine_tuned", lambda: fine_tune(options))
    stage(work, "scratch", lambda: train_from_scratch(options))
    stage(work, "same_network", lambda: train_same_network(options))
    print(table(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of Task04_Hippocampus")
    parser.add_argument("--work", type=Path, required=True, help="folder for all files and results")
    parser.add_argument(
        "--nnunet-minutes", type=float, default=35, help="longest training of nnU-Net (default: 35)"
    )
    parser.add_argument(
        "--slice", type=float, default=5, help="minutes between two measurements (default: 5)"
    )
    parser.add_argument("--target", type=float, default=0.80, help="mean Dice to reach (default: 0.80)")
    parser.add_argument(
        "--minutes", type=float, default=5, help="minutes of each training in medseg (default: 5)"
    )
    return parser


def results(work: Path) -> Figures:
    """Return the results of the finished stages."""
    path = work / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def save(work: Path, name: str, found: Figures) -> None:
    """Store the result of a stage, and print it."""
    (work / "results.json").write_text(json.dumps({**results(work), name: found}, indent=1))
    print(f"{name}: {json.dumps(found)}", flush=True)


def stage(work: Path, name: str, run: Callable[[], Figures]) -> None:
    """Run a stage unless it has a result."""
    if name not in results(work):
        began = perf_counter()
        found = run()
        save(work, name, {**found, "seconds": round(perf_counter() - began, 1)})


def train_nnunet(options: argparse.Namespace) -> None:
    """Train nnU-Net in slices until the target or the end of the time."""
    work, minutes = options.work, options.nnunet_minutes
    found = results(work).get("nnunet", {"minutes": 0.0, "steps": 0, "dice": 0.0})
    while True:
        if found["dice"] is None:  # not measured after the last slice
            call(
                WORKERS, "predict_nnunet", work=work, checkpoint=CHECKPOINT, output=work / "predicted/nnunet"
            )
            found |= evaluated(options, "nnunet")
            save(work, "nnunet", found)
        if found["dice"] >= options.target or found["minutes"] >= minutes:
            break
        until = min(minutes, max(minutes / 2, found["minutes"] + options.slice))
        shares = {"since": found["minutes"] / minutes, "until": until / minutes}
        trained = call(WORKERS, "train_nnunet", work=work, minutes=minutes, checkpoint=CHECKPOINT, **shares)
        found = {"minutes": until, "steps": found["steps"] + trained["steps"], "dice": None}
        save(work, "nnunet", found)
    if found["dice"] < options.target:
        print(
            f"nnU-Net has a Dice of {found['dice']:.3f} after {minutes:g} minutes, below {options.target:g}"
        )


def import_model(options: argparse.Namespace) -> Figures:
    """Import nnU-Net's model, and compare its logits and label maps with those of nnU-Net."""
    work = options.work
    trained = f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    if not (work / "imported").is_dir():
        medseg(
            "import", "nnunet", work / "nnunet" / "results" / DATASET / trained, "-o", work / "imported",
            "--folds", FOLD,
        )  # fmt: skip
    compared = compare_logits(options)
    print(f"logits: {json.dumps(compared)}", flush=True)
    return {**compared, **predicted(options, "imported", work / "imported")}


def compare_logits(options: argparse.Namespace) -> Figures:
    """Return the largest difference of a logit of the first held-out case."""
    import torch

    from medseg import load, read
    from medseg.data.preprocessing.prepare import prepare

    work = options.work
    image = sorted(link_held_out(options.data, work, "imagesTr").iterdir())[0]
    case, output = image.name.removesuffix(".nii.gz"), work / "logits.npy"
    found = call(WORKERS, "logits_nnunet", work=work, checkpoint=CHECKPOINT, case=case, output=output)
    theirs = np.load(output)
    predictor = load(work / "imported", device="cpu")
    prepared = prepare(read(image), predictor.saved.preprocessing).image.data
    own = predictor.logits(torch.from_numpy(prepared)).numpy()
    own = own.transpose(0, *(3 - axis for axis in found["transpose_forward"]))
    return {
        "case": case,
        "largest_logit": float(np.abs(theirs).max()),
        "largest_difference": float(np.abs(own - theirs).max()),
        "equal_labels": float((own.argmax(0) == theirs.argmax(0)).mean()),
    }


def fine_tune(options: argparse.Namespace) -> Figures:
    """Plan and train a fine-tuning of the imported model, and check that it began with the weights of that model."""
    plan = planned(options, "fine_tuned", "--from", options.work / "imported")
    run = trained(options, plan, "fine_tuned")
    return {
        "first_weights_equal": first_weights_equal(run, options.work / "imported"),
        **steps(run),
        **predicted(options, "fine_tuned", run / "model"),
    }


def first_weights_equal(run: Path, source: Path) -> bool:
    """Return whether the first weights of a run are those of its source, bit for bit."""
    from safetensors.numpy import load_file

    first, wanted = load_file(run / "first.safetensors"), load_file(source / "model.safetensors")
    return first.keys() == wanted.keys() and all(np.array_equal(first[key], wanted[key]) for key in wanted)


def train_from_scratch(options: argparse.Namespace) -> Figures:
    """Train the network that is planned for the dataset."""
    run = trained(options, planned(options, "scratch"), "scratch")
    return {**steps(run), **predicted(options, "scratch", run / "model")}


def train_same_network(options: argparse.Namespace) -> Figures:
    """Train nnU-Net's network from random weights."""
    plan = planned(options, "fine_tuned", "--from", options.work / "imported")
    run = trained(options, plan, "same_network", *(f"{key}={value}" for key, value in FROM_SCRATCH.items()))
    return {**steps(run), **predicted(options, "same_network", run / "model")}


def planned(options: argparse.Namespace, name: str, *more: object) -> Path:
    """Return a plan for the minutes; an existing one is reused."""
    path: Path = options.work / "plans" / f"{name}.yaml"
    if not path.is_file():
        time = f"{options.minutes:g}m"
        medseg("plan", options.data, "--device", "cpu", "--time", time, *more, "-o", path)
    return path


def trained(options: argparse.Namespace, plan: Path, name: str, *overrides: str) -> Path:
    """Return the run of a plan on nnU-Net's fold. A finished run is not trained again; an interrupted one begins anew."""
    run: Path = options.work / "runs" / name
    if not (run / "model").is_dir():
        if run.is_dir():
            shutil.rmtree(run)
        splits = [f"data.splits={options.work / 'splits_final.json'}", f"data.fold={FOLD}"]
        medseg("train", plan, *splits, *overrides, "--run", run)
    return run


def steps(run: Path) -> Figures:
    """Return the steps of a finished run."""
    return {"steps": json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]}


def predicted(options: argparse.Namespace, name: str, model: Path) -> Figures:
    """Predict the held-out cases with a model folder, and evaluate them."""
    images = link_held_out(options.data, options.work, "imagesTr")
    medseg("predict", model, images, "-o", options.work / "predicted" / name, "--skip-existing")
    return evaluated(options, name)


def evaluated(options: argparse.Namespace, name: str) -> Figures:
    """Return the mean Dice, and that of each label."""
    values, labels, _ = dice(options, name)
    means = values.mean(axis=0)
    return {"dice": float(means.mean()), "labels": dict(zip(labels, map(float, means), strict=True))}


def dice(options: argparse.Namespace, name: str) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Return the Dice `(cases, labels)` of predicted held-out cases, the names of the labels and the cases."""
    from medseg import evaluate
    from medseg.labels.label_table import Labels

    names = json.loads((options.data / "dataset.json").read_text())["labels"]
    labels = Labels.from_names({label: int(value) for value, label in names.items()})
    references = link_held_out(options.data, options.work, "labelsTr")
    found = evaluate(options.work / "predicted" / name, references, labels)
    values = {(row.case, row.label): row.value("dice") for row in found.rows}
    array = np.array([[values[case, label] for label in found.labels] for case in found.cases])
    return array, found.labels, found.cases


def table(options: argparse.Namespace) -> str:
    """Return the figures of all models, and the differences of the fine-tuned one to the others."""
    found = results(options.work)
    best, labels, cases = dice(options, "fine_tuned")
    header = ["model", "minutes", "steps", "mean Dice", *(f"Dice {label}" for label in labels)]
    header += ["fine-tuned minus this (95 % interval)", "cases better, worse"]
    rows = []
    for name, title in MODELS.items():
        values, _, _ = dice(options, name)
        own = found["nnunet" if name == "imported" else name]
        minutes = own.get("minutes", options.minutes)
        means = [f"{value:.3f}" for value in values.mean(axis=0)]
        rows.append([title, f"{minutes:g}", f"{own['steps']:,}", f"**{values.mean():.3f}**", *means])
        rows[-1] += difference(best, values, cases) if name != "fine_tuned" else ["", ""]
    logits = found["imported"]
    text = (
        f"{machine()}. {len(cases)} held-out cases. Largest difference of a logit of {logits['case']} to nnU-Net's: "
        f"{logits['largest_difference']:.1e} of at most {logits['largest_logit']:.1f}; the fine-tuning began with "
        f"{'the weights of the imported model' if found['fine_tuned']['first_weights_equal'] else 'OTHER weights'}."
    )
    return f"\n{text}\n\n{markdown(header, rows)}"


def difference(best: np.ndarray, other: np.ndarray, cases: tuple[str, ...]) -> list[str]:
    """Return the mean difference of two models with its interval, and the numbers of cases in which each is better."""
    from medseg.evaluation.statistics.paired_tests import paired_differences

    means = [values.mean(axis=1, keepdims=True) for values in (best, other)]
    (found,) = paired_differences(means[0], means[1], ["mean"], cases)
    return [f"{found.mean:+.3f} ({found.interval})", f"{found.wins}, {found.losses}"]


def medseg(*arguments: object) -> None:
    """Run a command of medseg."""
    subprocess.run([sys.executable, "-m", "medseg", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
