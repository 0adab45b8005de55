"""``medseg predict``: write the label map of each image, on the grid of its file."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths
from medseg.cli.prediction.predict_checks import (
    check_options,
    check_out_of_fold,
    check_sharing,
    given_options,
    images_and_settings,
)
from medseg.cli.reading_options import (
    add_cluster_option,
    add_files_root,
    add_reading_options,
    reading_options,
)
from medseg.errors import ModelError
from medseg.runtime.formatting import pluralise

if TYPE_CHECKING:
    from medseg.data.datasets.cases import Case
    from medseg.experiment.run_folder import RunFolder
    from medseg.inference.cohort.batch import Outcome
    from medseg.inference.cohort.loaded_models import LoadedModels
    from medseg.inference.cohort.output_files import OutputFiles
    from medseg.inference.cohort.predict_folder import FolderPrediction, NamedCase
    from medseg.inference.estimate import Estimate
    from medseg.inference.predictor import Predictor
    from medseg.runtime.progress import Progress


_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".tif",
    ".mha",
    ".mgz",
    ".seg.nrrd",
    ".png",
    ".seg.dcm",
    ".labelmap.dcm",
    ".rtstruct.dcm",
)


_MOST_REASONS = 3  # per case on the terminal


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("predict", help="segment images with a trained model", description=__doc__)
    parser.add_argument("model", help="model folder: RUN/model, or a RUN with --held-out")
    parser.add_argument(
        "images",
        nargs="*",
        default=[],
        metavar="IMAGE or key=value",
        help="files, folders of files, DICOM folders or tables with the columns case and image; and prediction settings that "
        "replace the model's own, such as overlap=0.25",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="folder of the label maps (default with --held-out: RUN/predictions)",
    )
    parser.add_argument(
        "--suffix",
        choices=_SUFFIXES,
        help="file format of the label maps (default: .nii.gz); .seg.nrrd for 3D Slicer, with names and colours; .png or .tif for those of natural images; for DICOM series also .seg.dcm "
        "(DICOM-SEG of type BINARY), .labelmap.dcm (of type LABELMAP) or .rtstruct.dcm (RTSTRUCT)",
    )
    parser.add_argument(
        "--held-out", action="store_true", help="predict the cases that the run held out, instead of images"
    )
    _add_machine_options(parser)
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="print the number of windows, the time and the memory for each image, without predicting it",
    )
    parser.add_argument(
        "--ensemble-with",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model folder for the same labels, to average probabilities with (repeatable)",
    )
    _add_output_options(parser)
    add_reading_options(parser, labels=False)
    add_files_root(parser, "a table")
    _add_cohort_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about what is written besides label maps."""
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write NAME_probabilities.nii: 4D, one volume per label or region, calibrated if the model has temperatures",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write NAME_uncertainty.nii: the entropy of the probabilities, from 0 (certain) to 1",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="also write NAME_instances.nii.gz and a table (id, label_value, score); for instance models",
    )
    parser.add_argument(
        "--split-labels",
        action="store_true",
        help="also write the folder NAME_labels with one mask per label; masks of regions may overlap",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="also write NAME_layers.seg.nrrd for 3D Slicer, in which regions that overlap are in layers",
    )
    parser.add_argument(
        "--label-table",
        action="store_true",
        help="also write NAME_labels.tsv with values, names and colours of the labels",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html: every case with a viewer, volumes of all labels, failed cases first",
    )


def _add_cohort_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about many cases."""
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip images that this model has predicted already, unless the image or the label map was changed since",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="predict the I-th of N parts of the images, for job arrays; all parts may write to one folder",
    )
    add_cluster_option(parser, "images")
    parser.add_argument(
        "--no-source-names",
        action="store_true",
        help="leave the names of image files out of cases.tsv and failed.tsv",
    )


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about devices and memory."""
    parser.add_argument(
        "--device",
        help="device, such as cpu or cuda:0; several, such as cuda:0,cuda:1, or all CUDA devices (all) to spread cases over "
        "(default: CUDA if available)",
    )
    parser.add_argument(
        "--engine",
        choices=("torch", "onnx", "openvino"),
        help="program that runs the network on a processor (default: torch); with precision=int8, openvino runs what medseg quantize "
        "stored",
    )
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="maximum resident memory, such as 6GB (default: half of the free memory)",
    )
    parser.add_argument(
        "--max-device-memory",
        metavar="SIZE",
        help="maximum memory on a CUDA device, such as 8GB (default: nine tenths of the free memory)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    given = given_options(options)
    images, settings = _checked(options, given)
    from medseg.experiment.held_out import held_out_cases
    from medseg.experiment.run_folder import RunFolder
    from medseg.inference.cohort.loaded_models import LoadedModels
    from medseg.inference.cohort.predict_folder import named_cases

    run, model = _run_and_model(Path(options.model))
    cross_validation = _cross_validation(Path(options.model)) if options.held_out else None
    if cross_validation is not None:
        check_out_of_fold(cross_validation.path, given, settings)
        check_sharing(None, options.cluster)
        return _predict_out_of_fold(cross_validation, options)
    check_sharing(options.part, options.cluster)
    machine = {"device": "cpu"} if options.cluster else {}  # workers have devices of their own
    models = LoadedModels.load([model, *options.ensemble_with], settings, **{**_machine(options), **machine})
    given_cases = held_out_cases(RunFolder(run)) if options.held_out else images
    cases = named_cases(given_cases, models.num_channels, models.reading(reading_options(options)))
    _introduce(models.predictors)
    if options.estimate:
        return _print_estimates(models, [case for _, case in cases])
    return _predict_cases(models, cases, Path(options.output or run / "predictions"), options)


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    if options.estimate:
        return ()
    if options.held_out:
        run, _ = _run_and_model(Path(options.model))
        return ("evaluate", shlex.quote(str(run)), "--report")
    return ("evaluate", shlex.quote(str(options.output)), "REFERENCES", "-o", "EVALUATION", "--report")


def _checked(options: argparse.Namespace, given: Collection[str]) -> tuple[list[Path], dict[str, Any]]:
    """Return images and settings after checking what can be checked without a model."""
    images, settings = images_and_settings(options.images)
    if options.engine:
        settings["engine"] = options.engine
    check_options(given, bool(images))
    models = [options.model, *options.ensemble_with]
    require_paths(models, "folder", expected="a model folder", error=ModelError)
    require_paths(images)
    return images, settings


def _predict_cases(
    models: LoadedModels, cases: Sequence[NamedCase], folder: Path, options: argparse.Namespace
) -> int:
    """Predict cases into a folder as the options say and return the exit code."""
    from medseg.cluster.parts import Part
    from medseg.inference.cohort.cohort_tables import review_line
    from medseg.inference.cohort.output_files import OutputFiles
    from medseg.inference.cohort.predict_folder import Cluster, Existing, FolderPrediction
    from medseg.inference.cohort.written_files import copies_named

    outputs = OutputFiles(
        folder,
        options.suffix or ".nii.gz",
        options.instances,
        options.probabilities,
        options.uncertainty,
        copies=copies_named(_copies(options)),
    )
    existing: Existing = ("update" if options.held_out else "keep") if options.skip_existing else "overwrite"
    prediction = FolderPrediction(
        models,
        cases,
        outputs,
        existing,
        source_names=not options.no_source_names,
        part=Part.parse(options.part) if options.part else None,
        cluster=Cluster(options.cluster, options.device) if options.cluster else None,
    )
    code = _predict(prediction, skips=options.skip_existing)
    if not options.instances:
        print(review_line(folder, [name for name, _ in cases]))
    if options.report:
        _write_report(models, cases, outputs)
    return code


def _copies(options: argparse.Namespace) -> list[str]:
    """Return the names of the copies of label maps that are wanted."""
    return [name for name in ("split_labels", "layers", "label_table") if getattr(options, name)]


def _write_report(models: LoadedModels, cases: Sequence[NamedCase], outputs: OutputFiles) -> None:
    """Write ``report.html`` next to the label maps, with a progress bar."""
    from medseg.report.prediction_report import write_prediction_report
    from medseg.runtime.progress import progress_bar

    page, lines = outputs.folder / "report.html", [str(predictor) for predictor in models.predictors]
    labels = models.predictors[0].labels
    with progress_bar(description="writing the report", total=len(cases)) as progress:
        write_prediction_report(page, cases, outputs, labels, models=lines, progress=progress)
    print(f"report: {page}")


def _introduce(predictors: Sequence[Predictor]) -> None:
    """Print what is about to predict, and with what images and predictions can be compared."""
    from medseg.inference.quality.too_few_cases import too_few_cases

    several = len(predictors) > 1
    for predictor in predictors:
        print(predictor, flush=True)
        name = predictor.saved.name
        if predictor.saved.training_data is None:
            print(f"{name}: no record of the training images, with which images could be compared")
        if predictor.quality is None and not several:
            print(
                f"{name}: no quality model, which a cross-validation fits; cases are compared with the training data only"
            )
        missing = None if several or predictor.quality is None else too_few_cases(predictor.quality)
        if missing is not None:
            print(f"{name}: {missing}")
    if several:
        print(
            "ensembles of several model folders have no estimates, also where each folder has a quality model; cases are compared "
            "with the training data only"
        )


def _machine(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the options about devices and memory as keyword arguments."""
    return {name: getattr(options, name) for name in ("device", "max_memory", "max_device_memory")}


def _run_and_model(folder: Path) -> tuple[Path, Path]:
    """Return the run folder and the model folder, given either of them."""
    model = folder / "model" if (folder / "model").is_dir() else folder
    return model.parent, model


def _cross_validation(folder: Path) -> RunFolder | None:
    """Return the cross-validation, given its folder or that of its ensemble; None for another run."""
    from medseg.experiment.run_folder import RunFolder

    candidates = [folder, *([folder.parent] if folder.name == "model" else [])]
    return next((run for run in map(RunFolder, candidates) if run.is_cross_validation), None)


def _predict(prediction: FolderPrediction, *, skips: bool) -> int:
    """Run a prediction with progress and return the exit code."""
    outputs = prediction.outputs
    total = pluralise(prediction.num_cases, "case")
    if skips:
        print(f"{prediction.num_cases - len(prediction)} of {total} predicted already")
    failed = _follow(prediction.run, len(prediction), "slice" if outputs.instances else "window")
    if prediction.by_others:
        print(f"{prediction.by_others} of {total} done by other processes meanwhile")
    print(f"{prediction.num_cases - failed} of {total} in {outputs.folder}")
    return 2 if failed else 0


def _predict_out_of_fold(run: RunFolder, options: argparse.Namespace) -> int:
    """Predict the cases of a cross-validation that are missing, each by the fold that held it out."""
    from medseg.experiment.cross_validation.out_of_fold import pending_predictions, predict_out_of_fold
    from medseg.inference.cohort.cohort_tables import complete_tables

    instances = options.instances
    pending = pending_predictions(run, instances=instances)
    cases = sum(len(one.cases) for one in pending)
    if not cases:
        complete_tables(run.predictions)
        print(f"all held-out cases were predicted already: {run.predictions}")
        return 0
    print(f"{cases} held-out cases to predict, each by the fold that was not trained on it", flush=True)

    def outcomes(progress: Progress) -> Iterator[Outcome]:
        return predict_out_of_fold(
            run,
            pending,
            instances=instances,
            source_names=not options.no_source_names,
            progress=progress,
            cluster=options.cluster,
            **_machine(options),
        )

    failed = _follow(outcomes, cases, "slice" if instances else "window")
    print(f"{cases - failed} of {pluralise(cases, 'case')} in {run.predictions}")
    return 2 if failed else 0


def _follow(outcomes: Callable[[Progress], Iterator[Outcome]], total: int, unit: str) -> int:
    """Show progress bars and print one line per case; return the number of failed cases.

    Raises:
        DiskFullError: The disk is full, so that the remaining cases could not be written either.
    """
    from medseg.errors import DiskFullError
    from medseg.runtime.progress import progress_bar

    failed = 0
    with progress_bar(total=total) as cases, progress_bar(unit, within=cases) as one_case:
        for number, outcome in enumerate(outcomes(one_case), 1):
            cases(number, total, outcome.case.id)
            if isinstance(outcome.error, DiskFullError):
                raise outcome.error
            if outcome.error is not None:
                failed += 1
                cases.write(f"{outcome.case.id}: {outcome.error}", file=sys.stderr)
            else:
                for note in _shown_notes(outcome):
                    cases.write(note, file=sys.stderr)
                cases.write(f"{outcome.target}  {outcome.seconds:.1f} s")
    return failed


def _shown_notes(outcome: Outcome) -> Iterator[str]:
    """Yield the notes about a prediction with at most three of the reasons that follow from a cross-validation."""
    where, flags = str(outcome.case.images[0]), () if outcome.quality is None else outcome.quality.flags
    learned = [flag for flag in flags if flag.learned]
    more = [flag.note(where) for flag in learned[_MOST_REASONS:]]
    yield from (note for note in outcome.notes if note not in more)
    if more:
        yield f"{where}: and {len(more)} more in cases.tsv"


def _print_estimates(models: LoadedModels, cases: Sequence[Case]) -> int:
    """Print the estimated time and memory for each image and return the exit code."""
    from medseg.inference.estimate import estimate_cases

    failed, seconds, memory, device_memory = 0, 0.0, 0, 0
    for found in estimate_cases(models.predictors, cases):
        if found.error is not None:
            failed += 1
            print(f"{found.case.id}: {found.error}", file=sys.stderr)
            continue
        windows = " + ".join(map(_windows_text, found.parts))
        sizes = _sizes_text(found.memory, found.device_memory)
        print(f"{found.case.id}  {windows}, {found.seconds:.1f} s, {sizes}", flush=True)
        seconds, memory = seconds + found.seconds, max(memory, found.memory)
        device_memory = max(device_memory, found.device_memory)
    total = pluralise(len(cases), "case")
    print(f"{len(cases) - failed} of {total}: {seconds:.0f} s, at most {_sizes_text(memory, device_memory)}")
    return 2 if failed else 0


def _sizes_text(memory: int, device_memory: int) -> str:
    """Return the memory of the process, and that on the device if it is not the processor."""
    from medseg.runtime.memory import format_size

    on_device = f" and {format_size(device_memory)} on the device" if device_memory else ""
    return format_size(memory) + on_device


def _windows_text(found: Estimate) -> str:
    shape = "x".join(map(str, found.shape))
    bands = f", in {found.bands} bands" if found.bands > 1 else ""
    return f"{shape} voxels, {pluralise(found.windows, 'window')} ({found.empty} empty){bands}"
