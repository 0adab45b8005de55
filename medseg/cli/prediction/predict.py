"""``medseg predict``: label maps of image files, each on its file's own grid."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.prediction.predict_checks import (
    check_options,
    check_settings,
    check_suffix,
    check_targets,
    files_of,
    given_options,
    is_there,
)
from medseg.runtime.formatting import pluralise

if TYPE_CHECKING:
    from medseg.inference.batch import Outcome, Recording
    from medseg.inference.estimate import Estimate
    from medseg.runtime.progress import Progress


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("predict", help="segment images with a trained model", description=__doc__)
    parser.add_argument("model", help="model folder: RUN/model, or a RUN with --held-out")
    parser.add_argument("images", nargs="*", default=[], help="files, folders of files, or DICOM folders")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="where label maps go; --held-out: RUN/predictions unless told",
    )
    parser.add_argument(
        "--suffix",
        choices=(".nii.gz", ".nii", ".nrrd", ".mha", ".png"),
        help="kind of file of the label maps; .nii.gz unless told; .png for those of pictures",
    )
    parser.add_argument(
        "--held-out", action="store_true", help="predict the cases that the run held out, instead of images"
    )
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="such as 6GB: what the program may take; default: half of what is free",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="print windows, time and memory of each image, and predict none",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="a setting: --set overlap=0.25; may recur",
    )
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model folder for the same labels: probabilities are averaged; may recur",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write NAME_probabilities.nii, too: 4-D, a volume a label, or a region",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="find objects: NAME_instances.nii.gz and .tsv (id, label_value, score) beside a label map of their classes",
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave label maps that are already there"
    )


def run(options: argparse.Namespace) -> int:
    from medseg.config import apply_overrides
    from medseg.data.datasets.layouts import output_stem
    from medseg.inference.predictor import load
    from medseg.inference.predictor_ensemble import PredictorEnsemble
    from medseg.inference.provenance import ModelId, Provenance
    from medseg.model_folder.folder import find_model_folder
    from medseg.storage.atomic import make_folder

    check_options(options)
    folder = Path(options.model)
    whole = _cross_validation(folder)
    if options.held_out and whole is not None:
        return _out_of_fold(whole, options)
    model_folder = folder / "model" if (folder / "model").is_dir() else folder
    settings = apply_overrides({}, options.set)
    check_settings(settings)
    predictors = []
    for model in (model_folder, *options.others):
        predictors.append(load(model, device=options.device, max_memory=options.max_memory, **settings))
    cases = _cases(options, model_folder.parent, len(predictors[0].saved.channel_names))
    check_suffix(options, cases)
    output = Path(options.output) if options.output else model_folder.parent / "predictions"
    together = PredictorEnsemble(predictors, scratch=output) if options.others else predictors[0]
    for predictor in predictors:
        print(predictor, flush=True)
    if options.estimate:
        return _estimate(predictors, cases)
    names = [case.id if options.held_out else output_stem(case) for case in cases]
    targets = [output / f"{name}{options.suffix or '.nii.gz'}" for name in names]
    check_targets(cases, files_of(targets, options))
    make_folder(output)
    pairs = list(zip(cases, targets, strict=True))
    provenance, model_id = (
        Provenance(output),
        ModelId.from_folders([model_folder, *map(find_model_folder, options.others)], options.set),
    )
    if options.skip_existing:
        pairs = [
            (case, target) for case, target in pairs if not is_there(target, provenance, model_id, options)
        ]
        print(f"{len(cases) - len(pairs)} of {pluralise(len(cases), 'case')} already there")
    recording = partial(
        provenance.recording,
        model_id=model_id,
        instances=options.instances,
        probabilities=options.probabilities,
    )
    failed = _predict(together, pairs, recording, options)
    print(f"{len(cases) - failed} of {pluralise(len(cases), 'case')} in {output}")
    return 2 if failed else 0


def _predict(
    predictor: Any,
    pairs: list[tuple[Any, Path]],
    recording: Recording,
    options: argparse.Namespace,
) -> int:
    """Predict, write, and note what made each label map, telling progress; returns how many failed."""
    from medseg.inference.batch import predict_files
    from medseg.inference.instance_batch import predict_instance_files

    def outcomes(progress: Progress) -> Iterator[Outcome]:
        if options.instances:
            return predict_instance_files(predictor, pairs, progress=progress, recording=recording)
        return predict_files(
            predictor, pairs, progress=progress, probabilities=options.probabilities, recording=recording
        )

    return _told(outcomes, len(pairs), options)


def _told(outcomes: Callable[[Progress], Iterator[Outcome]], total: int, options: argparse.Namespace) -> int:
    """Follow the outcomes with bars and a line a case; returns how many failed."""
    from medseg.runtime.progress import progress_bar

    failed = 0
    with (
        progress_bar(total=total) as cases,
        progress_bar("slice" if options.instances else "window", nested=True) as one_case,
    ):
        for number, outcome in enumerate(outcomes(one_case), 1):
            cases(number, total, outcome.case.id)
            if outcome.error is not None:
                failed += 1
                cases.write(f"{outcome.case.id}: {outcome.error}", file=sys.stderr)
            else:
                seconds = outcome.reading + outcome.network + outcome.writing
                cases.write(f"{outcome.target}  {seconds:.1f} s")
    return failed


def _cross_validation(folder: Path) -> Path | None:
    """The cross-validation that is meant by its own folder or by that of its ensemble."""
    from medseg.experiment.fold_folders import is_cross_validation

    ranked = [folder, *([folder.parent] if folder.name == "model" else [])]
    return next((one for one in ranked if is_cross_validation(one)), None)


def _out_of_fold(run: Path, options: argparse.Namespace) -> int:
    """Make the predictions that are missing, each by the fold that held its case out."""
    from medseg.errors import ConfigError
    from medseg.experiment.cross_validation.out_of_fold import pending_predictions, predict_out_of_fold

    others = given_options(options, "output", "estimate", "set", "with", "probabilities")
    if others:
        raise ConfigError(
            f"{run}: found --held-out with {', '.join(others)}, expected none of them, because its predictions are those of "
            f"the folds' own settings. Ask one fold: {run / 'fold_0'}."
        )
    todo = pending_predictions(run, instances=options.instances)
    cases = sum(len(one.cases) for one in todo)
    if not cases:
        print(f"all held-out cases are there already: {run / 'predictions'}")
        return 0
    print(f"{cases} held-out cases to predict, each by the fold that was not trained on it", flush=True)

    def outcomes(progress: Progress) -> Iterator[Outcome]:
        return predict_out_of_fold(
            run,
            todo,
            instances=options.instances,
            device=options.device,
            max_memory=options.max_memory,
            progress=progress,
        )

    failed = _told(outcomes, cases, options)
    print(f"{cases - failed} of {pluralise(cases, 'case')} in {run / 'predictions'}")
    return 2 if failed else 0


def _estimate(predictors: Sequence[Any], cases: list[Any]) -> int:
    """Print what each image would take; of several models, which work one after the other, seconds add up."""
    from medseg.errors import MedsegError
    from medseg.inference.estimate import estimate
    from medseg.runtime.memory import format_size

    failed, seconds, memory = 0, 0.0, 0
    for case in cases:
        try:
            found = [estimate(predictor, case) for predictor in predictors]
        except MedsegError as error:
            failed += 1
            print(f"{case.id}: {error}", file=sys.stderr)
            continue
        own_seconds, own_memory = sum(one.seconds for one in found), max(one.memory for one in found)
        windows = " + ".join(_windows_told(one) for one in found)
        print(f"{case.id}  {windows}, {own_seconds:.1f} s, {format_size(own_memory)}", flush=True)
        seconds, memory = seconds + own_seconds, max(memory, own_memory)
    print(
        f"{len(cases) - failed} of {pluralise(len(cases), 'case')}: {seconds:.0f} s, at most {format_size(memory)}"
    )
    return 2 if failed else 0


def _windows_told(found: Estimate) -> str:
    shape = "x".join(map(str, found.shape))
    parts = f", in {found.bands} parts" if found.bands > 1 else ""
    return f"{shape} voxels, {pluralise(found.windows, 'window')} ({found.empty} empty){parts}"


def _cases(options: argparse.Namespace, run: Path, channels: int) -> list[Any]:
    from medseg.data.datasets.layouts import read_images
    from medseg.experiment.run_folder import held_out_cases

    if options.held_out:
        return list(held_out_cases(run))
    return read_images([Path(image) for image in options.images], channels)
