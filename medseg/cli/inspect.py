"""``medseg inspect``: say what a file, a DICOM folder or a dataset holds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.data.cases import Case, Dataset


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("inspect", help="say what files or datasets hold", description=__doc__)
    parser.add_argument("paths", nargs="+", help="image files, DICOM folders, dataset folders or tables")
    parser.add_argument("--cases", type=int, default=10, help="rows of a dataset shown; 0 for all")


def run(options: argparse.Namespace) -> int:
    from medseg.errors import MedsegError

    failed = 0
    for text in options.paths:
        try:
            print(_describe(Path(text), options.cases), flush=True)
        except MedsegError as error:
            if len(options.paths) == 1:
                raise
            failed += 1
            print(error, file=sys.stderr)
    return 2 if failed else 0


def _describe(path: Path, most: int) -> str:
    import numpy as np

    from medseg.data.layouts import is_dataset, read_dataset
    from medseg.io import read

    if is_dataset(path):
        return _describe_dataset(read_dataset(path), most)
    images = _images_in(path)
    if images:
        told = [_describe(image, most) for image in images[: most or None]]
        more = (
            [f"... {len(images) - len(told)} more images (--cases 0 shows all)"]
            if len(images) > len(told)
            else []
        )
        return "\n".join([*told, *more])
    volume = read(path)
    origin = ", ".join(f"{value:.6g}" for value in volume.grid.affine[:3, 3])
    lines = [f"{path}", f"  {volume!r}", f"  origin ({origin}) mm, voxel {volume.grid.voxel_volume:.4g} mm3"]
    if volume.grid.shear > 1e-4:
        lines.append(f"  sheared: the axes' largest cosine is {volume.grid.shear:.3f}")
    if volume.data.dtype.kind == "f" and not np.isfinite(volume.data).all():
        lines.append(f"  {int((~np.isfinite(volume.data)).sum())} voxels are NaN or infinite")
    return "\n".join(lines)


def _images_in(path: Path) -> list[Path]:
    """Image files of a folder that is neither a dataset nor a DICOM series."""
    from medseg.io import suffix_of

    if not path.is_dir():
        return []
    return [
        f for f in sorted(path.iterdir()) if suffix_of(f) not in ("", ".img") and not f.name.startswith(".")
    ]


def _instances_of(case: Case) -> str:
    """How many instances a case has; nothing where it has no instance map."""
    import numpy as np

    from medseg.data.cases import read_case_instances

    if case.instances is None:
        return ""
    ids = read_case_instances(case).data
    return f"  {len(np.unique(ids[ids > 0]))} instances"


def _describe_dataset(dataset: Dataset, most: int) -> str:
    from medseg.io import read_grid

    maps = [f"{sum(case.label is not None for case in dataset.cases)} with a label map"]
    with_instances = sum(case.instances is not None for case in dataset.cases)
    if with_instances:
        maps.append(f"{with_instances} with an instance map")
    lines = [
        f"{dataset.root}: {dataset.name}",
        f"  {len(dataset.cases)} cases, {', '.join(maps)}, "
        f"{len({case.subject for case in dataset.cases})} subjects",
        f"  channels: {', '.join(dataset.channel_names)}",
    ]
    if dataset.labels is not None:
        names = [f"{label.value} {label.name}" for label in dataset.labels]
        lines.append(f"  labels: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")
        if dataset.labels.regions:
            regions = [f"{one.name} ({', '.join(map(str, one.values))})" for one in dataset.labels.regions]
            lines.append(f"  regions: {', '.join(regions)}")
        if dataset.labels.ignore is not None:
            lines.append(f"  ignored: {dataset.labels.ignore}")
    partial = sum(case.drawn is not None for case in dataset.cases)
    if partial:
        lines.append(f"  {partial} cases of which only some labels were drawn")
    shown = dataset.cases[: most or None]
    width = max((len(case.id) for case in shown), default=0)
    for case in shown:
        grid = read_grid(case.images[0])
        shape = "x".join(map(str, grid.shape))
        spacing = "x".join(f"{value:.3g}" for value in grid.spacing)
        lines.append(f"  {case.id:<{width}}  {shape:>13}  {spacing} mm  {grid.axcodes}{_instances_of(case)}")
    if len(dataset.cases) > len(shown):
        lines.append(f"  ... {len(dataset.cases) - len(shown)} more (--cases 0 shows all)")
    return "\n".join(lines)
