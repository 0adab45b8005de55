"""``medseg quantize``: add a network with 8-bit integers to a model folder, for fast prediction on processors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import require_paths
from medseg.errors import ModelError

if TYPE_CHECKING:
    from medseg.quantization.choose_cases import QuantizationCases
    from medseg.quantization.quantize_model import Int8Figures


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "quantize",
        help="add a network with 8-bit integers to a model folder",
        description="Add a network with 8-bit integers to a model folder, for fast prediction on processors with "
        "engine=openvino precision=int8. It is calibrated on training cases and measured on held-out cases, and is stored only if "
        "their mean Dice is kept.",
    )
    parser.add_argument("model", help="model folder, or a finished RUN")
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="dataset to calibrate and measure on (default: the cases of the RUN); a fifth of its subjects is measured",
    )
    parser.add_argument(
        "--windows", type=int, default=300, metavar="N", help="windows to calibrate on (default: 300)"
    )
    parser.add_argument(
        "--calibration-cases",
        type=int,
        default=20,
        metavar="N",
        help="maximum number of cases to take windows from (default: 20)",
    )
    parser.add_argument(
        "--measured-cases",
        type=int,
        default=40,
        metavar="N",
        help="maximum number of cases to measure Dice on (default: 40)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.002,
        metavar="DICE",
        help="largest loss of mean Dice at which the network is stored (default: 0.002)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    _check(options)
    from medseg.quantization.choose_cases import spread
    from medseg.quantization.quantize_model import quantize_model
    from medseg.runtime.progress import progress_bar

    cases = _cases(options)
    calibrate = spread(cases.calibrate, options.calibration_cases)
    measure = spread(cases.measure, options.measured_cases)
    print(f"calibrating on {len(calibrate)} cases, measuring {len(measure)}", flush=True)
    if not cases.held_out:
        print(
            "the model may have been trained on the measured cases; the loss of Dice is measured, not the Dice"
        )
    with progress_bar("case", total=len(calibrate) + 3 * len(measure)) as bar:
        done = 0

        def progress(_: int, __: int | None, what: str) -> None:
            nonlocal done
            done += 1
            bar(done, len(calibrate) + 3 * len(measure), what)

        figures = quantize_model(
            options.model,
            calibrate,
            measure,
            windows=options.windows,
            largest_loss=options.max_loss,
            progress=progress,
        )
    _print_figures(figures)
    return 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows."""
    return ("predict", str(options.model), "IMAGES", "-o", "FOLDER", "engine=openvino", "precision=int8")


def _check(options: argparse.Namespace) -> None:
    """Check what can be checked before heavy libraries are imported."""
    from medseg.errors import ConfigError

    require_paths([options.model], "folder", expected="a model folder", error=ModelError)
    if options.data:
        require_paths([options.data])
    for name in ("windows", "calibration_cases", "measured_cases"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option}: found {getattr(options, name)}, expected at least 1. Give a larger number."
            )
    if not options.max_loss >= 0:
        raise ConfigError(
            f"--max-loss: found {options.max_loss}, expected 0 or more. Give a loss such as 0.002."
        )


def _cases(options: argparse.Namespace) -> QuantizationCases:
    from medseg.errors import ConfigError
    from medseg.experiment.run_folder import RunFolder
    from medseg.labels.label_table import Labels
    from medseg.model_folder.folder import find_model_folder
    from medseg.model_folder.settings import SavedModel
    from medseg.quantization.choose_cases import cases_of_dataset, cases_of_run

    if options.data:
        folder = find_model_folder(options.model)
        absent = SavedModel.load(folder / "config.yaml").absent_channels
        return cases_of_dataset(options.data, Labels.from_tsv(folder / "labels.tsv"), absent)
    run = RunFolder(Path(options.model))
    if not run.splits.is_file():
        raise ConfigError(
            "--data: missing, expected the dataset, because the model is not a run. Give it with --data DATASET."
        )
    return cases_of_run(run)


def _print_figures(figures: Int8Figures) -> None:
    from medseg.runtime.text_tables import text_table

    rows = [["Dice", "float32", "int8"]]
    rows += [
        [name, f"{dice:.4f}", f"{figures.dice_int8.get(name, float('nan')):.4f}"]
        for name, dice in figures.dice.items()
    ]
    print(text_table(rows))
    ends = ", first and last convolution in float32" if figures.float_ends else ""
    print(
        f"loss of mean Dice {figures.loss:.4f} on {figures.cases} cases; {figures.speedup:.1f} times fewer CPU seconds "
        f"({figures.seconds:.1f} to {figures.seconds_int8:.1f}){ends}"
    )
