"""``medseg view``: look at images and label maps in a browser, in one HTML file that needs no network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import positive, require_paths
from medseg.cli.output_names import HTML, check_output_name
from medseg.cli.reading_options import add_reading_options, reading_options

if TYPE_CHECKING:
    from medseg.viz.viewer.viewer_case import ViewerCase


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "view", help="look at images and label maps in a browser", description=__doc__
    )
    parser.add_argument("image", help="image file, DICOM folder, dataset folder or table of cases")
    parser.add_argument(
        "label_maps",
        nargs="*",
        metavar="labels",
        help="label maps of the image; for a dataset, folders with label maps that are named as its cases",
    )
    parser.add_argument(
        "--reference", metavar="FILE", help="label map with which the first label map is compared"
    )
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="FILE",
        help="map of numbers to show over the image in a scale of colours, such as NAME_uncertainty.nii or "
        "NAME_probabilities.nii of `medseg predict`; may be given several times",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="HTML file to write (default: NAME_view.html in the current folder)",
    )
    parser.add_argument(
        "--names",
        metavar="FILE",
        help="labels.tsv with names and colours (default: the one next to the label map, or the names in its header)",
    )
    parser.add_argument(
        "--window", metavar="NAME", help="soft tissue, lung, bone or brain (default: by the intensities)"
    )
    parser.add_argument(
        "--max-size",
        default="12MB",
        metavar="SIZE",
        help="size of the page; images are reduced until it fits (default: 12MB)",
    )
    parser.add_argument(
        "--cases", type=positive, default=10, help="maximum number of cases of a dataset (default: 10)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_reading_options(parser, labels=False, datasets=True)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    require_paths([options.image, *options.label_maps, *options.overlay])
    from medseg.runtime.memory import format_size, parse_size
    from medseg.storage.atomic import check_folder
    from medseg.viz.viewer.viewer_page import write_viewer

    check_output_name(options.output, "--output", HTML)
    most = parse_size(options.max_size, "--max-size")
    cases = _cases(options)
    target = Path(
        options.output or f"{cases[0].name if len(cases) == 1 else Path(options.image).name}_view.html"
    )
    check_folder(target.parent)
    write_viewer(target, cases, title=_title(options.image, cases), max_bytes=most)
    print(
        f"{target}: {len(cases)} case{'s' * (len(cases) != 1)}, {format_size(target.stat().st_size)}",
        flush=True,
    )
    if options.open:
        import webbrowser

        webbrowser.open(target.resolve().as_uri())
    return 0


def _cases(options: argparse.Namespace) -> Sequence[ViewerCase]:
    from medseg.data.datasets.layouts import is_dataset
    from medseg.errors import ConfigError
    from medseg.labels.label_table import Labels
    from medseg.viz.viewer.open_cases import open_dataset, open_image

    names = Labels.from_tsv(options.names) if options.names else None
    shared: dict[str, Any] = {"names": names, "window": options.window, "reading": reading_options(options)}
    if not is_dataset(Path(options.image)):
        image = _only_image(Path(options.image))
        files = {"reference": options.reference, "overlays": options.overlay}
        return [open_image(image, options.label_maps, **files, **shared)]
    if options.overlay:
        raise ConfigError("--overlay: found a dataset, expected one image. Give the image of the map.")
    if options.reference:
        raise ConfigError(
            "--reference: found a dataset, whose own label maps are the reference. Leave the option out."
        )
    return open_dataset(options.image, options.label_maps, most=options.cases, **shared)


def _only_image(path: Path) -> Path:
    """Return a file, a DICOM folder, or the only image of another folder."""
    from medseg.data.datasets.image_inputs import image_files
    from medseg.errors import DataError

    images = image_files(path)
    if len(images) > 1:
        raise DataError(
            f"{path}: found {len(images)} images, expected one image, a DICOM series or a dataset. Give one of them, such as {images[0]}."
        )
    return images[0]


def _title(image: str, cases: Sequence[ViewerCase]) -> str:
    return cases[0].name if len(cases) == 1 else Path(image).name
