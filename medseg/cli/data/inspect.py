"""``medseg inspect``: describe a file, a DICOM folder or a dataset."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import not_negative, require_paths
from medseg.cli.reading_options import add_reading_options, reading_options
from medseg.runtime.formatting import pluralise

if TYPE_CHECKING:
    from medseg.data.datasets.cases import Case, Dataset, ReadingOptions
    from medseg.volumes.grid import Grid


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser("inspect", help="describe files or datasets", description=__doc__)
    parser.add_argument("paths", nargs="+", help="image files, DICOM folders, dataset folders or tables")
    parser.add_argument(
        "--cases",
        type=not_negative,
        default=10,
        help="maximum number of cases to list (default: 10; 0 lists all)",
    )
    add_reading_options(parser, datasets=True)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from medseg.errors import MedsegError

    failed = 0
    for text in options.paths:
        try:
            failed += _print_path(Path(text), options.cases, reading_options(options))
        except MedsegError as error:
            if len(options.paths) == 1:
                raise
            failed += 1
            print(error, file=sys.stderr, flush=True)
    return 2 if failed else 0


def next_command(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the command that usually follows; none if there is none."""
    from medseg.data.datasets.layouts import is_dataset

    (path, *others) = options.paths
    return ("check", shlex.quote(path)) if not others and is_dataset(Path(path)) else ()


def _print_path(path: Path, most: int, reading: ReadingOptions) -> int:
    """Print a description of a path; return the number of faulty files or cases, which are reported on standard error."""
    require_paths([path])
    from medseg.data.datasets.layouts import is_dataset, read_dataset

    if is_dataset(path) or _lacks_images(path):
        return _print_dataset(read_dataset(path, reading=reading), most)
    images = _images_in(path)
    if not images:
        if _print_series(path, reading):
            return 0
        print(_describe_image(path, reading), flush=True)
        return 0
    shown = images[: most or None]
    faulty = sum(not _print_description(_describe_image, image, reading) for image in shown)
    if len(images) > len(shown):
        print(f"... {len(images) - len(shown)} more images (--cases 0 shows all)", flush=True)
    return faulty


def _print_series(path: Path, reading: ReadingOptions) -> bool:
    """Print the list of the series of a folder; return False without a list if there is one series or one is chosen."""
    from medseg.io.dicom.series_choice import list_series

    folder = path.parent if path.name.upper() == "DICOMDIR" else path
    if reading.series is not None or not folder.is_dir():
        return False
    found = list_series(folder)
    if len(found) < 2:
        return False
    print(f"{folder}: {len(found)} DICOM series", flush=True)
    for one in found:
        print(f"  {one.described()}", flush=True)
    print("Choose one by its number or UID with --series.", flush=True)
    return True


def _print_description(describe: Callable[..., str], *of: Any) -> bool:
    """Print a description, or its error on standard error; return whether there was no error."""
    from medseg.errors import MedsegError

    try:
        print(describe(*of), flush=True)
    except MedsegError as error:
        print(error, file=sys.stderr, flush=True)
        return False
    return True


def _describe_image(path: Path, reading: ReadingOptions) -> str:
    import numpy as np

    volume = reading.read_image(path)
    origin = ", ".join(f"{value:.6g}" for value in volume.grid.affine[:3, 3])
    lines = [f"{path}", f"  {volume!r}", f"  origin ({origin}) mm, voxel {volume.grid.voxel_volume:.4g} mm3"]
    if volume.grid.is_sheared:
        lines.append(f"  sheared: the axes' largest cosine is {volume.grid.shear:.3f}")
    if volume.data.dtype.kind == "f" and not np.isfinite(volume.data).all():
        lines.append(f"  NaN or infinity in {pluralise(int((~np.isfinite(volume.data)).sum()), 'voxel')}")
    return "\n".join(lines)


def _lacks_images(path: Path) -> bool:
    """Return whether a folder is empty or has a subfolder ``images`` instead of images: it can only be a dataset."""
    from medseg.data.datasets.image_folders import IMAGES

    if not path.is_dir() or _images_in(path):
        return False
    return (path / IMAGES).is_dir() or all(item.name.startswith(".") for item in path.iterdir())


def _images_in(path: Path) -> list[Path]:
    """Return the images and DICOM series in a folder; an empty list for a file, a single series, or a folder of other files."""
    from medseg.data.datasets.image_inputs import image_files
    from medseg.data.datasets.names import visible_files
    from medseg.io.dicom.series_files import holds_dicom

    if not path.is_dir() or not (visible_files(path) or any(map(holds_dicom, path.glob("*/")))):
        return []
    return [image for image in image_files(path) if image != path]


def _instances_of(case: Case) -> str:
    """Return the number of instances of a case as text; empty without an instance map."""
    import numpy as np

    from medseg.data.datasets.read_case import read_case_instances

    if case.instances is None:
        return ""
    ids = read_case_instances(case).data
    return f"  {len(np.unique(ids[ids > 0]))} instances"


def _print_dataset(dataset: Dataset, most: int) -> int:
    """Print a summary and a row for each of the first cases; return the number of faulty ones among these."""
    shown = dataset.cases[: most or None]
    print(_describe_dataset(dataset, shown), flush=True)
    width = max((len(case.id) for case in shown), default=0)
    faulty = sum(not _print_description(_describe_case, case, dataset, width) for case in shown)
    if len(dataset.cases) > len(shown):
        print(f"  ... {len(dataset.cases) - len(shown)} more (--cases 0 shows all)", flush=True)
    return faulty


def _describe_dataset(dataset: Dataset, shown: Sequence[Case]) -> str:
    """Return a summary of a dataset."""
    from medseg.data.datasets.splits import subjects_of

    maps = [f"{sum(case.label is not None for case in dataset.cases)} with a label map"]
    with_instances = sum(case.instances is not None for case in dataset.cases)
    if with_instances:
        maps.append(f"{with_instances} with an instance map")
    lines = [
        f"{dataset.root}: {dataset.name}",
        f"  {pluralise(len(dataset.cases), 'case')}, {', '.join(maps)}, "
        f"{pluralise(len(set(subjects_of(dataset.cases).values())), 'subject')}",
        f"  channels: {', '.join(dataset.channel_names)}",
        *_describe_labels(dataset, shown),
    ]
    partial = sum(case.annotated is not None for case in dataset.cases)
    if partial:
        lines.append(f"  {pluralise(partial, 'case')} partially annotated")
    return "\n".join(lines)


def _describe_labels(dataset: Dataset, shown: Sequence[Case]) -> list[str]:
    labels = dataset.labels
    if labels is None:
        values = _values_in_natural_images(shown)
        found = f" for the values {', '.join(map(str, values[:20]))}" if values else ""
        advice = "Add labels.tsv (value, name), or data.labels to the config."
        return [f"  labels: found no names{found}. {advice}"] if dataset.labelled_cases else []
    names = [f"{label.value} {label.name}" for label in labels]
    lines = [f"  labels: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"]
    if labels.regions:
        regions = [f"{one.name} ({', '.join(map(str, one.values))})" for one in labels.regions]
        lines.append(f"  regions: {', '.join(regions)}")
    if labels.ignore is not None:
        lines.append(f"  ignored: {labels.ignore}")
    return lines


def _values_in_natural_images(cases: Sequence[Case]) -> list[int]:
    """Return the values of label maps stored as natural images, except unreadable ones, which their own rows report."""
    import numpy as np

    from medseg.errors import DataError
    from medseg.io.files import NATURAL_IMAGES, read_labels, suffix_of

    values: set[int] = set()
    for case in cases:
        if case.label is not None and suffix_of(case.label) in NATURAL_IMAGES:
            with suppress(DataError):
                values.update(np.unique(read_labels(case.label, like=case.images[0]).data).tolist())
    return sorted(values)


def _describe_case(case: Case, dataset: Dataset, width: int) -> str:

    grid = case.reading.read_grid(case.images[0])
    _check_natural_images(case, dataset, grid)
    shape = "x".join(map(str, grid.shape))
    spacing = "x".join(f"{value:.3g}" for value in grid.spacing)
    return f"  {case.id:<{width}}  {shape:>13}  {spacing} mm  {grid.axcodes}{_instances_of(case)}"


def _check_natural_images(case: Case, dataset: Dataset, grid: Grid) -> None:
    """Raise `DataError` if training would refuse a natural image or its label map; reading volumes takes too long."""
    from medseg.data.datasets.read_case import read_case_label
    from medseg.data.preprocessing.prepare import check_image
    from medseg.io.files import NATURAL_IMAGES, read, read_labels, suffix_of
    from medseg.labels.label_table import Labels

    if len(case.images) == 1 and suffix_of(case.images[0]) in NATURAL_IMAGES:
        check_image(read(case.images[0]), len(dataset.channel_names), f"case {case.id}")
    if case.label is not None and suffix_of(case.label) in NATURAL_IMAGES:
        labels = dataset.labels or Labels.from_values(read_labels(case.label, like=case.images[0]).data)
        read_case_label(case, labels, grid)
