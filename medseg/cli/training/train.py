"""``medseg train``: train an experiment, or resume a stopped run."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths
from medseg.cli.reading_options import add_cluster_option, add_reading_options

if TYPE_CHECKING:
    from medseg.experiment.cross_validation.folds import CrossValidation
    from medseg.experiment.experiment import Experiment
    from medseg.runtime.progress import Progress, ProgressBar
    from medseg.train.trainer import Trainer


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("train", help="train an experiment", description=__doc__)
    parser.add_argument("config", nargs="?", help="YAML experiment; not needed with --resume")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings to change, such as train.steps=2000",
    )
    parser.add_argument("--data", metavar="PATH", help="dataset folder or table (data.path)")
    add_reading_options(parser, datasets=True)
    parser.add_argument("--run", metavar="FOLDER", help="new run folder (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN", help="resume this run from its last checkpoint")
    folds = parser.add_mutually_exclusive_group()
    folds.add_argument(
        "--fold", type=int, metavar="K", help="train one fold of a cross-validation, in RUN/fold_K"
    )
    folds.add_argument(
        "--all-folds",
        action="store_true",
        help="train all unfinished folds, then predict and evaluate the held-out cases and write the ensemble to RUN",
    )
    parser.add_argument(
        "--extend",
        metavar="MORE",
        help="with --resume: train a finished run for MORE additional steps (2000) or time (30m)",
    )
    add_cluster_option(parser, "preparation of the cases and the prediction of held-out cases")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.errors import ConfigError
    from medseg.runtime.worker_process import end_with_torchrun

    require_paths([options.config], "file", fix="Give the path of a YAML experiment.", error=ConfigError)
    require_paths([options.resume], "folder", expected="a run", error=ConfigError)
    fix = "Give a dataset's folder or a table of cases (TSV or CSV)."
    require_paths([options.data], expected="a dataset", fix=fix)

    end_with_torchrun()  # before torch is loaded, which takes seconds
    from medseg.experiment.experiment import Experiment

    if options.resume:
        others = {"a config": options.config, "--data": options.data, "--run": options.run}
        if found := [name for name, value in others.items() if value]:
            raise ConfigError(
                f"--resume: found also {' and '.join(found)}, expected only the run, because its own config is used. "
                f"Remove {'it' if len(found) == 1 else 'them'}."
            )
        folder = Path(options.resume)
        experiment = Experiment.from_run(folder)
    elif options.extend:
        raise ConfigError("--extend: found no run, expected a finished one. Give it with --resume RUN.")
    elif options.config is None:
        raise ConfigError(
            "config: found none, expected a YAML file such as configs/phantom/unet_3d.yaml, or --resume RUN."
        )
    else:
        data = [f"data.path={options.data}"] if options.data else []
        if options.orientation_from:
            data.append(f"data.orientation_from={options.orientation_from}")
        if options.trust_label_array:
            data.append("data.trust_label_array=true")
        if options.files_root:
            data.append(f"data.files_root={options.files_root}")
        if options.series:
            data.append(f"data.series={options.series}")
        if options.uneven:
            data.append(f"data.uneven={options.uneven}")
        if options.absent_channels:
            data.append(f"data.absent_channels={options.absent_channels}")
        if options.repairs:
            data.append(f"data.repairs={options.repairs}")
        experiment = Experiment.load(options.config, *options.overrides, *data)
        options.run = options.run or f"runs/{experiment.name}"
        folder = Path(options.run)
    from medseg.experiment.run_folder import RunFolder  # after the experiment, because it loads torch

    resumes_folds = bool(options.resume) and RunFolder(folder).is_cross_validation
    if options.all_folds or options.fold is not None or resumes_folds:
        _train_one_or_all_folds(experiment, folder, options)
    else:
        train(experiment, folder, resume=bool(options.resume), extend=options.extend, cluster=options.cluster)
    return 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    from medseg.runtime.launch import is_main_process

    model = Path(options.resume or options.run or "") / "model"
    if not is_main_process() or not (model / "config.yaml").is_file():
        return ()
    return ("predict", shlex.quote(str(model)), "IMAGES", "-o", "FOLDER")


def train(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool,
    extend: str | None = None,
    cluster: str | None = None,
) -> None:
    """Prepare the data, train, and print the path of the model; only the main process prints.

    Args:
        experiment: Experiment to train.
        folder: Run folder.
        resume: Continue from the last checkpoint in the folder.
        extend: Additional steps (``"2000"``) or time (``"30m"``) for a finished run.
        cluster: Dask cluster on which cases are measured and prepared; None for this machine.

    Raises:
        ConfigError: The folder holds another run, or the run cannot be extended.
        DataError: The dataset cannot be used.
    """
    from medseg.runtime.launch import is_main_process

    go_on = f"medseg train --resume {shlex.quote(str(folder))}"
    _follow(
        lambda progress: experiment.trainer(
            folder, resume=resume, extend=extend, progress=progress, cluster=cluster
        ),
        folder,
        go_on,
    )
    if is_main_process():
        print(f"model: {folder / 'model'}")


def _train_one_or_all_folds(experiment: Experiment, folder: Path, options: argparse.Namespace) -> None:
    """Train a single fold, or train all folds and aggregate them."""
    from medseg.errors import ConfigError

    if options.extend:
        raise ConfigError(
            f"--extend: found a cross-validation ({folder}), expected a single run, because all folds are trained equally long. "
            "Train longer in a new folder."
        )
    validation = experiment.cross_validation(folder, cluster=options.cluster)
    if validation.is_main:
        print(f"{folder}: {validation}; if it is stopped, run the same command again to continue", flush=True)
    go_on = f"medseg train --resume {shlex.quote(str(folder))}"
    if options.fold is not None:
        _train_fold(validation, options.fold, f"{go_on} --fold {options.fold}")
        left = validation.unfinished
        if validation.is_main and left:
            print(f"folds still to train: {', '.join(map(str, left))}; continue with: {go_on}")
        elif validation.is_main:
            print(f"all folds are trained; aggregate them with: {go_on}")
        return
    for fold in validation.folds:
        _train_fold(validation, fold, go_on)
    if validation.is_main:
        _gather(validation, go_on)


def _train_fold(validation: CrossValidation, fold: int, go_on: str) -> None:
    if validation.is_finished(fold):
        if validation.is_main:
            print(f"fold {fold}: finished", flush=True)
        return
    _follow(lambda progress: validation.trainer(fold, progress=progress), f"fold {fold}", go_on)


def _gather(validation: CrossValidation, go_on: str) -> None:
    """Predict and evaluate the held-out cases of all folds and write the ensemble, with a progress bar."""
    from medseg.experiment.cross_validation.aggregate import no_post_processing_reason
    from medseg.inference.quality.quality_model import QualityModel
    from medseg.inference.quality.too_few_cases import too_few_cases
    from medseg.runtime.progress import progress_bar

    print("aggregating: predicting and evaluating the held-out cases of each fold", flush=True)
    try:
        with progress_bar(description="aggregating", describe=True) as progress:
            table = validation.aggregate(progress=progress)
    except KeyboardInterrupt:
        print(f"continue with: {go_on}", file=sys.stderr)
        raise
    print(table)
    quality = QualityModel.from_folder(validation.run.model)
    for reason in (
        no_post_processing_reason(validation.run),
        None if quality is None else too_few_cases(quality),
    ):
        if reason is not None:
            print(reason)
    print(f"predictions: {validation.run.predictions}, tables: {validation.run.evaluation}")
    print(f"model: {validation.run.model}")


def _follow(make: Callable[[Progress], Trainer], name: Path | str, go_on: str) -> None:
    """Create a trainer and train with a progress bar; if training stops, print how to resume. Only the main process prints."""
    from medseg.runtime.launch import is_main_process
    from medseg.runtime.progress import progress_bar
    from medseg.train.timing.step_estimate import trained_in_words

    hidden = not is_main_process()
    with progress_bar(description="preparing", hidden=hidden) as progress:
        trainer = make(progress)
    if is_main_process():
        record = trainer.run.saved.started_from
        if record is not None and trainer.step == 0:
            print(record)
        print(f"{name}: {trainer}", flush=True)
    if trainer.finished and is_main_process():
        print(f"finished already; to continue training: {go_on} --extend 2000")
    elif is_main_process() and (estimate := trainer.estimate) is not None:
        print(f"{name}: {estimate}", flush=True)
    try:
        with progress_bar("step", total=trainer.steps, initial=trainer.step, hidden=hidden) as bar:
            if is_main_process():
                trainer.on_step = _shown_steps(bar, trainer)
            for report in trainer:
                if is_main_process():
                    bar.write(str(report))
        max_time = trainer.settings.max_time
        if max_time is not None and trainer.step == trainer.steps and is_main_process():
            print(f"{name}: {trained_in_words(trainer.step, max_time)}", flush=True)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if hasattr(error, "exit_code") and error.exit_code > 3 and is_main_process():
            print(f"resume with: {go_on}", file=sys.stderr)
        raise


def _shown_steps(bar: ProgressBar, trainer: Trainer) -> Callable[[int, int | None], None]:
    """Return a callback that moves the bar with every step and prints a line about the first one and about a time budget."""
    from medseg.train.timing.step_estimate import measured_in_words

    began, first, measured = time.monotonic(), True, False

    def show(step: int, steps: int | None) -> None:
        nonlocal first, measured
        bar(step, steps, "step", left=trainer.time_left.seconds(steps))
        if first:
            first = False
            seconds = time.monotonic() - began
            bar.write(
                f"step {step}/{steps or '?'} done after {seconds:.1f} s, with starting up; the time left is shown from now on"
            )
        if not measured and trainer.step_seconds is not None and steps is not None:
            measured = True
            bar.write(measured_in_words(steps, trainer.step_seconds, str(trainer.settings.max_time)))

    return show
