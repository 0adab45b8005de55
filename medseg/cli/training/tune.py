"""``medseg tune``: search for better settings of an experiment with short trainings."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths

if TYPE_CHECKING:
    from medseg.tuning.search import Search


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "tune",
        help="search for better settings with short trainings",
        description="Search for better settings of an experiment. The default settings and each trial are trained for the same time, "
        "and compared by the Dice of their last validation; poor trials end early. Needs the extra tune (Optuna).",
    )
    parser.add_argument("config", nargs="?", help="YAML experiment; not needed with --resume")
    parser.add_argument(
        "space", nargs="?", help="YAML file with search (values by key), overrides, trials and trial_time"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings of the experiment to change"
    )
    parser.add_argument("--run", metavar="FOLDER", help="new folder of the search (default: runs/NAME_tune)")
    parser.add_argument("--resume", metavar="FOLDER", help="continue a search that was stopped")
    parser.add_argument("--trials", type=int, metavar="N", help="number of trials, instead of the file's")
    parser.add_argument(
        "--trial-time", metavar="TIME", help="time of each training such as 3m, instead of the file's"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.errors import ConfigError

    fix = "Give the path of a YAML file."
    require_paths([options.config, options.space], "file", fix=fix, error=ConfigError)
    require_paths([options.resume], "folder", expected="the folder of a search", error=ConfigError)
    _require_optuna()
    search = _search(options)
    options.run = str(search.folder)
    total = search.settings.trials
    print(
        f"{search.folder}: default settings and {total} trials of {search.settings.trial_time} each; if it is stopped, continue with: "
        f"medseg tune --resume {shlex.quote(str(search.folder))}",
        flush=True,
    )
    _train(search)
    table = search.table()
    print(table)
    print(table.verdict())
    print(f"table: {search.folder / 'trials.tsv'}, figure: {search.folder / 'trials.png'}")
    best = search.write_best()
    if best is not None:
        print(f"experiment with the best settings: {best}")
    return 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    best = Path(options.run) / "best.yaml"
    return ("train", shlex.quote(str(best)), "--all-folds") if best.is_file() else ()


def _require_optuna() -> None:
    from importlib.util import find_spec

    from medseg.errors import ConfigError

    if find_spec("optuna") is None:
        raise ConfigError(
            'tune: found no package optuna, expected it. Install it with: pip install "medseg[tune]".'
        )


def _search(options: argparse.Namespace) -> Search:
    """Return the search that the options describe, new or continued."""
    from medseg.config import apply_overrides
    from medseg.errors import ConfigError
    from medseg.experiment.config import ExperimentConfig
    from medseg.tuning.search import Search
    from medseg.tuning.settings import TuneSettings
    from medseg.yaml_dialect import read_yaml

    if options.resume:
        given = {"a config": options.config, "--run": options.run, "--trial-time": options.trial_time}
        if found := [name for name, value in given.items() if value]:
            raise ConfigError(
                f"--resume: found also {' and '.join(found)}, expected only the folder. Remove them."
            )
        search = Search.load(options.resume)
        return search if options.trials is None else search.with_trials(options.trials)
    if options.config is None or options.space is None:
        raise ConfigError(
            "tune: expected an experiment and a file of settings to vary, or --resume FOLDER. Give both files, for example "
            "medseg tune plan.yaml space.yaml."
        )
    changes = {"trials": options.trials, "trial_time": options.trial_time}
    overrides = [f"{key}={value}" for key, value in changes.items() if value is not None]
    settings = TuneSettings.load(options.space, *overrides)
    experiment = ExperimentConfig.load(
        options.config, *options.overrides
    )  # checks it, with its lines in messages
    base = apply_overrides(read_yaml(Path(options.config)), options.overrides)
    return Search.create(options.run or f"runs/{experiment.name}_tune", settings, base)


def _train(search: Search) -> None:
    """Train all trials with a progress bar and one line per trial."""
    from medseg.runtime.progress import progress_bar

    done = len(search.table().trials)
    total = search.settings.trials + 1
    with progress_bar("training", total=total, initial=done) as bar:
        for trial in search.run():
            done += 1
            bar(min(done, total), total, trial.name)
            values = " ".join(f"{key}={value}" for key, value in trial.values.items())
            reason = f": {trial.message}" if trial.message else ""
            bar.write(
                f"{trial.name}  {trial.state}  Dice {trial.dice:.4f}  {trial.steps} steps  {values}{reason}"
            )
