"""``medseg predict``: label maps of image files, each on its file's own grid."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("predict", help="segment images with a trained model", description=__doc__)
    parser.add_argument("model", help="model folder: RUN/model, or a RUN with --held-out")
    parser.add_argument("images", nargs="*", help="files, folders of files, or DICOM folders")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="where label maps go; --held-out: RUN/predictions unless told",
    )
    parser.add_argument(
        "--held-out", action="store_true", help="predict the cases that the run held out, instead of images"
    )
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="a setting: --set overlap=0.25; may recur",
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave label maps that are already there"
    )


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from medseg.config import apply_overrides
    from medseg.errors import ConfigError, MedsegError
    from medseg.inference.predictor import load
    from medseg.io import write
    from medseg.io.atomic import make_folder

    if options.held_out == bool(options.images):
        raise ConfigError("predict: give either images or --held-out.")
    if options.images and not options.output:
        raise ConfigError("predict: no place for the label maps. Give it with --output FOLDER.")
    folder = Path(options.model)
    model_folder = folder / "model" if (folder / "model").is_dir() else folder
    predictor = load(model_folder, device=options.device, **apply_overrides({}, options.set))
    cases = _cases(options, model_folder.parent, len(predictor.saved.channel_names))
    output = Path(options.output) if options.output else model_folder.parent / "predictions"
    targets = [output / f"{case.id}.nii.gz" for case in cases]
    _check_targets(cases, targets)
    make_folder(output)
    print(predictor, flush=True)
    failed = 0
    for case, target in tqdm(
        list(zip(cases, targets, strict=True)), unit="case", file=sys.stderr, disable=None
    ):
        if options.skip_existing and target.is_file():
            continue
        began = time.perf_counter()
        try:
            write(predictor(case), target)
            tqdm.write(f"{target}  {time.perf_counter() - began:.1f} s", file=sys.stdout)
        except MedsegError as error:
            failed += 1
            tqdm.write(f"{case.id}: {error}", file=sys.stderr)
        sys.stdout.flush()
    print(f"{len(cases) - failed} of {len(cases)} cases in {output}")
    return 2 if failed else 0


def _cases(options: argparse.Namespace, run: Path, channels: int) -> list[Any]:
    from medseg.data.layouts import read_images
    from medseg.experiment.runs import held_out_cases

    if options.held_out:
        return list(held_out_cases(run))
    return read_images([Path(image) for image in options.images], channels)


def _check_targets(cases: list[Any], targets: list[Path]) -> None:
    """Refuse before any work: two cases with one name, or an output that is an input."""
    from medseg.errors import ConfigError

    if len(set(targets)) != len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ConfigError(
            f"{twice}: two images would be written to this name. Predict them into two folders."
        )
    inputs = {image.resolve() for case in cases for image in case.images}
    clash = next((target for target in targets if target.resolve() in inputs), None)
    if clash is not None:
        raise ConfigError(f"{clash}: the output would replace an input. Choose another --output.")
