"""``medseg train``: train an experiment, or go on with a run that was stopped."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.experiment import Experiment


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("train", help="train an experiment", description=__doc__)
    parser.add_argument("config", nargs="?", help="YAML experiment; not needed with --resume")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values to change: train.steps=2000"
    )
    parser.add_argument("--data", metavar="PATH", help="dataset folder or table (data.path)")
    parser.add_argument("--run", metavar="FOLDER", help="new run folder; runs/NAME unless told")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run from its last checkpoint")
    parser.add_argument(
        "--extend", metavar="MORE", help="with --resume, steps (2000) or time (30m) more for a finished run"
    )


def run(options: argparse.Namespace) -> int:
    from medseg.errors import ConfigError
    from medseg.experiment import Experiment

    if options.resume:
        if options.config or options.data or options.run:
            raise ConfigError("--resume takes the run's own config. Give nothing else with it.")
        folder = Path(options.resume)
        train(Experiment.load(folder / "config.yaml"), folder, resume=True, extend=options.extend)
        return 0
    if options.extend:
        raise ConfigError("--extend needs the run that gets more. Give it with --resume RUN.")
    if options.config is None:
        raise ConfigError(
            "no experiment given. Give a YAML file, such as configs/phantom/unet_3d.yaml, or --resume."
        )
    data = [f"data.path={options.data}"] if options.data else []
    experiment = Experiment.load(options.config, *options.overrides, *data)
    train(experiment, Path(options.run or f"runs/{experiment.name}"), resume=False)
    return 0


def train(experiment: Experiment, folder: Path, *, resume: bool, extend: str | None = None) -> None:
    """Prepare, train, and say where things are; a stop tells how to go on. Of several processes one speaks."""
    from tqdm import tqdm

    from medseg.train.launch import is_leader

    # None: a bar where it is seen, not in a file or a pipe.
    hidden = None if is_leader() else True
    with tqdm(desc="preparing", unit="case", file=sys.stderr, disable=hidden) as bar:

        def on_case(done: int, total: int, case_id: str) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        trainer = experiment.trainer(folder, resume=resume, extend=extend, on_case=on_case)
    if is_leader():
        print(f"{folder}: {trainer}", flush=True)
    try:
        with tqdm(
            total=trainer.steps, initial=trainer.step, unit="step", file=sys.stderr, disable=hidden
        ) as bar:
            for report in trainer:
                if is_leader():
                    bar.total = report.steps
                    bar.update(report.step - bar.n)
                    bar.write(str(report), file=sys.stdout)
                    sys.stdout.flush()
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if hasattr(error, "exit_code") and error.exit_code > 3 and is_leader():
            print(f"resume with: medseg train --resume {shlex.quote(str(folder))}", file=sys.stderr)
        raise
    if is_leader():
        print(f"model: {folder / 'model'}")
