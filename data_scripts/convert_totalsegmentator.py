"""Combine the single-organ masks of a TotalSegmentator dataset into one label map per subject.

The script reads the files SUBJECT/ct.nii.gz and SUBJECT/segmentations/ORGAN.nii.gz (Wasserthal et al., Radiology: AI
2023, doi:10.1148/ryai.230024) and writes a folder in the layout of the Medical Segmentation Decathlon: imagesTr,
labelsTr, labels.tsv and, at the end, dataset.json.

The label values are those of --classes, a TSV table with the columns value and name, or 1, 2, ... in the order of the
organs' names. Where masks overlap, the voxel gets the lowest of their values, and the number of such voxels is printed.

    python data_scripts/convert_totalsegmentator.py Totalsegmentator_dataset --out data/total
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError, MedsegError
from medseg.io.files import read_grid, read_labels, stem_of, suffix_of, write
from medseg.labels.label_table import Labels
from medseg.storage.atomic import replacing, write_text
from medseg.volumes.volume import Volume

_MASKS = "segmentations"


@dataclass(frozen=True)
class Combined:
    """The label map of one subject.

    Attributes:
        volume: The label map.
        overlapping: Number of voxels in more than one mask.
        absent: Number of classes without a mask file.
    """

    volume: Volume
    overlapping: int
    absent: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        convert(options.source, options.out, options.image, options.classes, options.channel, options.link)
        dataset = read_dataset(options.out)
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(dataset.cases)} cases, {len(dataset.labels or ())} labels with background")
    return 0


def convert(
    source: Path, out: Path, image: str, classes: Path | None = None, channel: str = "CT", link: bool = False
) -> None:
    """Convert every subject that has an image; the module's docstring describes the files.

    Args:
        source: Folder of the dataset.
        out: New folder for the result.
        image: Name of the image file in each subject's folder.
        classes: TSV table with the columns value and name; None numbers the organs in the order of their names.
        channel: Name of the image's channel.
        link: Whether to link to the images instead of copying them.

    Raises:
        DataError: There is no subject, a mask has another grid than its image or no class, or `out` is not empty.
    """
    subjects = sorted(path.parent for path in source.glob(f"*/{image}"))
    if not subjects:
        raise DataError(f"{source}: found no SUBJECT/{image} in it. Give the dataset's folder, or --image.")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: found files in it, expected a new folder. Choose another --out.")
    labels = Labels.from_tsv(classes) if classes else _classes_of(subjects)
    suffix = suffix_of(image)
    entries = []
    for subject in tqdm(subjects, unit="subject", disable=None):
        combined = combine(subject, image, labels)
        _report(subject.name, combined)
        target = out / "imagesTr" / f"{subject.name}{suffix}"
        label = out / "labelsTr" / f"{subject.name}.nii.gz"
        _place(subject / image, target, link)
        write(combined.volume, label)
        entries.append({"image": f"./imagesTr/{target.name}", "label": f"./labelsTr/{label.name}"})
    write_text(out / "labels.tsv", labels.to_tsv())
    description = {
        "name": source.resolve().name,
        "channel_names": {"0": channel},
        "labels": {label.name: label.value for label in labels},
        "numTraining": len(entries),
        "training": entries,
    }
    write_text(out / "dataset.json", json.dumps(description, indent=1) + "\n")


def combine(subject: Path, image: str, labels: Labels) -> Combined:
    """Combine the masks of one subject on the grid of its image; the first organ in class order keeps a voxel.

    Args:
        subject: Folder of the subject.
        image: Name of the image file.
        labels: Classes of the masks.

    Returns:
        The label map, with the numbers of overlapping voxels and of absent masks.

    Raises:
        DataError: A mask has another grid, or a name that `labels` lacks.
    """
    grid = read_grid(subject / image)
    masks = {stem_of(path): path for path in sorted((subject / _MASKS).glob("*.nii*"))}
    unknown = sorted(set(masks) - set(labels.names))
    if unknown:
        raise DataError(
            f"{subject / _MASKS}: found masks without a class: {', '.join(unknown)}. Add them to --classes, "
            "or remove these masks."
        )
    classes = np.zeros(grid.shape, dtype=np.uint16)
    overlapping = absent = 0
    for index, organ in enumerate(labels.foreground, 1):
        if organ.name not in masks:
            absent += 1
            continue
        mask = read_labels(masks[organ.name]).reoriented(grid.axcodes)
        if not mask.grid.matches(grid):
            raise DataError(
                f"{masks[organ.name]}: mask on another grid than {image}: found {mask.grid}, expected {grid}. "
                "Download the subject again."
            )
        chosen = mask.data[0] != 0
        overlapping += int((chosen & (classes > 0)).sum())
        classes[chosen & (classes == 0)] = index
    return Combined(Volume(labels.to_values(classes)[None], grid, "label"), overlapping, absent)


def _classes_of(subjects: Sequence[Path]) -> Labels:
    names = sorted({stem_of(mask) for subject in subjects for mask in (subject / _MASKS).glob("*.nii*")})
    if not names:
        raise DataError(
            f"{subjects[0].parent}: found no mask in SUBJECT/{_MASKS}. Give the dataset's folder."
        )
    return Labels.from_names({name: value for value, name in enumerate(names, 1)})


def _report(name: str, combined: Combined) -> None:
    if combined.overlapping:
        tqdm.write(
            f"{name}: {combined.overlapping} voxels in more than one mask are assigned to the first of their classes"
        )
    if combined.absent:
        tqdm.write(f"{name}: {combined.absent} classes have no mask file and are treated as absent")


def _place(image: Path, target: Path, link: bool) -> None:
    if link:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(image.resolve())
    else:
        with replacing(target) as temporary:
            shutil.copyfile(image, temporary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with one subfolder per subject")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the dataset")
    parser.add_argument("--classes", type=Path, help="TSV table with the columns value and name")
    parser.add_argument("--image", default="ct.nii.gz", help="name of the image file (default: ct.nii.gz)")
    parser.add_argument("--channel", default="CT", help="name of the image's channel (default: CT)")
    parser.add_argument("--link", action="store_true", help="link to the images instead of copying them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
