"""How well quality flags, expected Dice and volume intervals work on clean and on spoilt images of a cross-validated run.

    medseg train plan.yaml --run cv --all-folds
    python benchmarks/quality_flags.py cv --wrong-region OTHER_IMAGE.nii.gz [...] --device cpu

Every held-out case is predicted by the network of the fold that held it out, and judged by a quality model that was fitted to the
out-of-fold predictions of the other folds. 16 cases each are spoilt by noise, a half cut off, inverted contrast, blur, and
by exchanging the image for a region of other images in which no label is. Prints the share of flagged cases, Spearman's rank
correlation of expected and true Dice over clean and spoilt cases together and that of the mean maximum probability, and
the coverage of volume intervals, for all folds and for each. The run folder is only read if its held-out cases are predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import medseg
from medseg.errors import DataWarning
from medseg.experiment.cross_validation.out_of_fold import (
    held_out_by_fold,
    pending_predictions,
    predict_out_of_fold,
)
from medseg.experiment.run_folder import RunFolder
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.quality.case_quality import CaseQuality
from medseg.inference.quality.fit_quality import ReferenceCase, fit_quality, measure_quality
from medseg.inference.quality.image_features import Features
from medseg.inference.quality.quality_model import QualityModel
from medseg.inference.uncertainty.case_evidence import EvidenceSums
from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import label_volumes
from medseg.volumes.volume import Volume

KINDS = ("noise", "half cut off", "inverted contrast", "blur", "wrong region")
FALL = 0.1


@dataclass(frozen=True)
class Judged:
    """A clean or spoilt case: its true mean Dice, the fall of it, and what its quality model says."""

    case: str
    fold: int
    kind: str
    dice: float
    fall: float
    expected: float
    baseline: float
    quality: CaseQuality


@dataclass(frozen=True)
class Predicted:
    """The prediction of a clean or spoilt case, before a quality model judges it."""

    case: str
    fold: int
    kind: str
    dice: float
    baseline: float
    features: Features
    training_flags: CaseQuality


def spoilt(
    kind: str, image: Volume, label: Volume, others: Sequence[Volume], random: np.random.Generator
) -> tuple[Volume, Volume]:
    """Return a spoilt image and its reference, which has no label in a wrong region."""
    values, reference = image.data[0].astype(np.float32), label.data[0].copy()
    low, high = np.percentile(values, (2, 98))
    if kind == "noise":
        values = values + random.normal(0, 0.5 * (high - low), values.shape)
    elif kind == "half cut off":
        axis, first = int(random.integers(3)), bool(random.integers(2))
        half = values.shape[axis] // 2
        part = slice(0, half) if first else slice(half, None)
        values[(slice(None),) * axis + (part,)] = values.min()
    elif kind == "inverted contrast":
        values = high + low - np.clip(values, low, high)
    elif kind == "blur":
        values = ndimage.gaussian_filter(values, 3.0 / np.array(image.grid.spacing))
    else:
        values = _region(others[int(random.integers(len(others)))].data[0], values.shape, random)
        reference[:] = 0
    return image.with_data(values[None].astype(np.float32)), label.with_data(reference[None])


def _region(values: np.ndarray, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return a region of the upper half of an image that is mostly tissue."""
    while True:
        corner = [
            int(random.integers(0, size - wanted + 1))
            for size, wanted in zip(values.shape, shape, strict=True)
        ]
        corner[2] = max(corner[2], values.shape[2] // 2)
        box = values[tuple(slice(start, start + wanted) for start, wanted in zip(corner, shape, strict=True))]
        if box.shape == shape and np.mean(box != 0) > 0.6:
            return box.astype(np.float32)


def predict_spoilt(
    run: RunFolder, kinds: dict[str, str], others: Sequence[Volume], seed: int, device: str | None
) -> list[Predicted]:
    """Return the predictions of spoilt cases by the networks that held them out."""
    found = []
    for one in held_out_by_fold(run):
        predictor = medseg.load(one.model, device=device)
        for case in one.cases:
            if case.id in kinds:
                assert case.label is not None
                random = np.random.default_rng([seed, list(kinds).index(case.id)])
                image, label = medseg.read(case.images[0]), medseg.read_labels(case.label)
                image, reference = spoilt(kinds[case.id], image, label, others, random)
                assessment, sums = predictor.assessment(), EvidenceSums(predictor.labels)
                labels = predictor.run(
                    predictor.prepare(image, on_image=assessment), evidence=sums, note=lambda sentence: None
                )
                quality = assessment.finish(labels, sums.evidence())
                dice = list(dice_of(labels, reference, predictor.labels).values())
                mean = float(np.mean(dice)) if dice else float("nan")  # nothing found where nothing is
                baseline = sums.evidence().mean_max_probability or 0.0
                found.append(
                    Predicted(case.id, one.fold, kinds[case.id], mean, baseline, assessment.features, quality)
                )
                print(case.id, kinds[case.id], f"Dice {mean:.3f}", file=sys.stderr)
    return found


def dice_of(labels: Volume, reference: Volume, table: Labels) -> dict[str, float]:
    """Return the Dice of each label that the prediction or the reference has."""
    found = {}
    for one in table.evaluated:
        first, second = np.isin(labels.data, one.values), np.isin(reference.data, one.values)
        if first.any() or second.any():
            found[one.name] = float(2 * np.sum(first & second) / (first.sum() + second.sum()))
    return found


def out_of_fold(run: RunFolder) -> tuple[list[ReferenceCase], list[Predicted]]:
    """Return the out-of-fold predictions with their references, and what the records say about them."""
    records, cases, found = CaseRecords(run.predictions), [], []
    for one in held_out_by_fold(run):
        table = medseg.load(one.model, device="cpu").labels
        for case in one.cases:
            record = records.get(case.id)
            assert record is not None
            assert case.label is not None
            prediction = record.prediction
            assert prediction is not None
            assert prediction.evidence is not None
            assert prediction.features is not None
            assert prediction.quality is not None
            labels, reference = (
                medseg.read_labels(run.predictions / f"{case.id}.nii.gz"),
                medseg.read_labels(case.label),
            )
            dice = dice_of(labels, reference, table)
            volumes = (
                {item.name: item.ml for item in label_volumes(one_map, table)}
                for one_map in (labels, reference)
            )
            cases.append(ReferenceCase(case.id, one.fold, prediction.features, dice, *volumes))
            mean, baseline = (
                float(np.mean(list(dice.values()))),
                prediction.evidence.mean_max_probability or 0.0,
            )
            found.append(
                Predicted(case.id, one.fold, "clean", mean, baseline, prediction.features, prediction.quality)
            )
    return cases, found


def judged(one: Predicted, clean_dice: float, model: QualityModel) -> Judged:
    """Return a prediction as a quality model judges it; flags from the ranges of the training images count, too."""
    quality = model.judge(one.features)
    kinds = {flag.kind for flag in quality.flags}
    more = [flag for flag in one.training_flags.flags if flag.kind not in kinds]
    quality = replace(quality, flags=(*quality.flags, *more))
    fall = clean_dice - one.dice
    return Judged(one.case, one.fold, one.kind, one.dice, fall, expected_of(quality), one.baseline, quality)


def expected_of(quality: CaseQuality) -> float:
    """Return the mean expected Dice; 0 for a label that was not found."""
    return float(np.mean([one.dice or 0.0 for one in quality.labels]))


def report(clean: Sequence[Judged], bad: Sequence[Judged]) -> dict[str, float]:
    """Print the tables and return their main figures."""
    print(
        "\n| images | cases | mean Dice | fell by more than .1 | of these flagged | all flagged | expected Dice |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in ("clean", *KINDS):
        listed = [one for one in (*clean, *bad) if one.kind == kind]
        fell = [one for one in listed if one.fall > FALL]
        flagged = sum(one.quality.to_review for one in listed)
        print(
            f"| {kind} | {len(listed)} | {np.nanmean([one.dice for one in listed]):.3f} | {len(fell)} | "
            f"{sum(one.quality.to_review for one in fell)} | {flagged} | {np.mean([one.expected for one in listed]):.3f} |"
        )
    fell = [one for one in bad if one.fall > FALL]
    mixed = [one for one in (*clean, *bad) if np.isfinite(one.dice)]
    dice = [one.dice for one in mixed]
    return {
        "spoilt cases whose Dice fell": len(fell),
        "of these flagged": float(np.mean([one.quality.to_review for one in fell])),
        "clean cases flagged": float(np.mean([one.quality.to_review for one in clean])),
        "Spearman, expected Dice": float(spearmanr([one.expected for one in mixed], dice).statistic),
        "Spearman, mean maximum probability": float(
            spearmanr([one.baseline for one in mixed], dice).statistic
        ),
    }


def report_coverage(cases: Sequence[ReferenceCase], models: dict[int, QualityModel]) -> dict[str, float]:
    """Print coverage by fold and label, and return it over all cases and labels."""
    print(
        "\n| fold | cases | volume coverage | Dice coverage | flagged | median reference / predicted volume |"
    )
    print("|---|---|---|---|---|---|")
    for fold in models:
        of_fold = [case for case in cases if case.fold == fold]
        found = measure_quality(of_fold, models)
        ratios = ", ".join(
            f"{name} {np.median([c.reference_ml[name] / c.volumes_ml[name] for c in of_fold if c.volumes_ml[name]]):.2f}"
            for name in of_fold[0].reference_ml
        )
        print(
            f"| {fold} | {len(of_fold)} | {found.volume_coverage:.3f} | {found.dice_coverage:.3f} | {found.flagged:.3f} | {ratios} |"
        )
    found = measure_quality(cases, models)
    assert found.volume_coverage is not None
    assert found.dice_coverage is not None
    return {"volume coverage": found.volume_coverage, "Dice coverage": found.dice_coverage}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, help="run folder of a cross-validation; missing predictions are added"
    )
    parser.add_argument("--wrong-region", type=Path, nargs="+", required=True, metavar="IMAGE")
    parser.add_argument("--each", type=int, default=16, help="spoilt images of each kind")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device")
    parser.add_argument(
        "--spoilt", type=Path, help="file that keeps the predictions of spoilt images; used if it exists"
    )
    parser.add_argument("--json", type=Path, help="also write figures and cases to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    run = RunFolder(options.run)
    folds = held_out_by_fold(run)
    ids = sorted(case.id for one in folds for case in one.cases)
    chosen = np.random.default_rng(options.seed).permutation(ids)[: options.each * len(KINDS)].tolist()
    kinds = {case: KINDS[number % len(KINDS)] for number, case in enumerate(chosen)}
    others = [medseg.read(path).reoriented("RAS") for path in options.wrong_region]
    if options.spoilt is not None and options.spoilt.is_file():
        values = json.loads(options.spoilt.read_text())
        bad = [
            Predicted(**{**one, "training_flags": CaseQuality.from_plain(one["training_flags"])})
            for one in values
        ]
    else:
        bad = predict_spoilt(run, kinds, others, options.seed, options.device)
        if options.spoilt is not None:
            options.spoilt.write_text(json.dumps([asdict(one) for one in bad]))
    for outcome in predict_out_of_fold(run, pending_predictions(run), device=options.device):
        print(outcome.case.id, outcome.error or f"{outcome.seconds:.1f} s", file=sys.stderr)
    cases, predicted = out_of_fold(run)
    models = {one.fold: fit_quality([case for case in cases if case.fold != one.fold]) for one in folds}
    dice = {one.case: one.dice for one in predicted}
    clean = [judged(one, dice[one.case], models[one.fold]) for one in predicted]
    spoilt_ones = [judged(one, dice[one.case], models[one.fold]) for one in bad]
    figures = {**report(clean, spoilt_ones), **report_coverage(cases, models)}
    print()
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    for one in clean:
        if one.quality.to_review:
            print(f"clean, flagged: {one.case} (Dice {one.dice:.3f}): {one.quality.flags[0].sentence}")
    for one in spoilt_ones:
        if one.fall > FALL and not one.quality.to_review:
            print(f"missed: {one.case}, {one.kind}, Dice {one.dice:.3f}, expected {one.expected:.3f}")
    if options.json is not None:
        rows = [
            {"case": one.case, "fold": one.fold, "kind": one.kind, "dice": one.dice, "expected": one.expected,
             "baseline": one.baseline, "flags": [flag.sentence for flag in one.quality.flags]}
            for one in (*clean, *spoilt_ones)
        ]  # fmt: skip
        options.json.write_text(json.dumps({"figures": figures, "cases": rows}, indent=1))


if __name__ == "__main__":
    main()
