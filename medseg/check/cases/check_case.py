"""The checks of one case. The result is small, so that it can be sent from a worker process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.check.cases.file_findings import read_file
from medseg.check.cases.label_findings import first_index, fragments, label_values, value_findings
from medseg.check.finding import Finding
from medseg.data.datasets.cases import Case
from medseg.data.datasets.names import relative_name
from medseg.data.datasets.read_case import LARGEST_EXACT, LARGEST_ID, read_case_label, repaired_values
from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import format_number, pluralise
from medseg.viz.thumbnails import thumbnail
from medseg.volumes.grid import Grid, reorientation_like
from medseg.volumes.orientation import AXES, reorient_array
from medseg.volumes.plausible import format_dimensions
from medseg.volumes.volume import Volume

_SAMPLES = 100_000


@dataclass(frozen=True)
class ChannelRange:
    """Intensities of one channel of an image.

    Attributes:
        low: Smallest value.
        high: Largest value.
        median: Median of the values above the smallest one, from a regular sample.
    """

    low: float
    high: float
    median: float


_ABSENT = ChannelRange(0.0, 0.0, 0.0)  # left out of comparisons, like a constant channel


@dataclass(frozen=True, eq=False)
class CheckedCase:
    """What the checks across cases need to know of one case.

    Attributes:
        id: Id of the case.
        subject: The person.
        findings: Findings about its files.
        grid: Grid of the image, or of the label map if the image cannot be read; None without either.
        channels: Intensities of each channel; empty if the image cannot be read.
        image_hash: Hash of the voxels in RAS orientation, empty if the image cannot be read.
        label_counts: Voxels by label value; None without a readable label map.
        label_hash: Hash of the label map in RAS orientation, empty if it has no labelled voxel.
        image_file: Name of the first image, relative to the dataset.
        label_file: Name of the label map, relative to the dataset; empty without one.
        placed_by: Name of the file that `grid` is that of.
        bits: Bits per voxel of the first image as it is read; 0 if it cannot be read.
        png: Small image of one slice with the outlines of the labels; empty if none was requested.
    """

    id: str
    subject: str
    findings: tuple[Finding, ...]
    grid: Grid | None = None
    channels: tuple[ChannelRange, ...] = ()
    image_hash: str = ""
    label_counts: Mapping[int, int] | None = None
    label_hash: str = ""
    image_file: str = ""
    label_file: str = ""
    placed_by: str = ""
    bits: int = 0
    png: bytes = b""


@dataclass
class _Work:
    """A case while it is being checked."""

    case: Case
    root: Path
    labels: Labels | None
    channel_names: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    guessed: set[Path] = field(default_factory=set)  # files whose header leaves their place open

    def read(self, path: Path, *, label: bool = False) -> Volume | None:
        """Read a file, add its findings, and return its voxels if they can be read."""
        done = read_file(path, self.root, self.case.id, self.case.reading, label=label)
        self.findings += done.findings
        if done.guessed:
            self.guessed.add(path)
        return done.volume

    def name(self, path: Path) -> str:
        return relative_name(path, self.root)

    def add(self, code: str, path: Path, what: str, found: str, expected: str = "") -> None:
        self.findings.append(Finding(code, self.name(path), what, found, expected, case=self.case.id))


def check_case(
    case: Case, labels: Labels | None, channel_names: tuple[str, ...], root: Path, *, images: bool = False
) -> CheckedCase:
    """Check the files of one case; problems are findings, not exceptions.

    Args:
        case: A case, whose files may be missing or damaged.
        labels: Labels of the dataset; None if it names none.
        channel_names: Names of its channels; empty accepts any number.
        root: Folder of the dataset.
        images: Whether to create a small image for the page.

    Returns:
        Findings and measurements.
    """
    work = _Work(case, root, labels, channel_names)
    image, channels, digest = _check_images(work)
    grid = None if image is None else image.grid
    label, counts = _check_label(work, grid)
    instances = _check_instances(work, grid)
    shown = None
    lone = None if grid is not None or label is None else label.grid
    label_hash = _voxel_hash(label) if label is not None and label.data.any() else ""
    label = instances if label is None else label
    if label is not None and grid is not None:
        turned = label.reoriented_like(grid)
        shown = turned if turned.grid.shape == grid.shape else None
    return CheckedCase(
        case.id,
        case.subject,
        tuple(work.findings),
        None if case.images[0] in work.guessed else grid or lone,
        channels,
        digest,
        counts,
        label_hash,
        work.name(case.images[0]),
        work.name(case.label) if case.label else "",
        work.name(case.label if lone is not None and case.label else case.images[0]),
        0 if image is None else 8 * image.data.dtype.itemsize,
        thumbnail(image, shown) if images and image is not None else b"",
    )


def _check_images(work: _Work) -> tuple[Volume | None, tuple[ChannelRange, ...], str]:
    """Check all channels; return the first image, the intensities of all channels, and a hash of their voxels."""
    case, first, ranges, hashes = work.case, None, [], []
    for path in case.images:
        volume = work.read(path)
        if volume is None:
            continue
        ranges += [_check_channel(work, path, channel) for channel in volume.data]
        hashes.append(_voxel_hash(volume))
        if first is None:
            first = volume
        else:
            _compare_grids(work, path, volume.grid, first.grid, "CHANNEL")
    complete = len(hashes) == len(case.images)
    if complete and case.absent:
        for index in case.absent:  # in the place of their channel
            ranges.insert(index, _ABSENT)
    if not work.channel_names and first is not None and first.channels > 1 and not first.grid.in_pixels:
        work.add("IMAGE_SEVERAL_CHANNELS", case.images[0], "channels", f"{first.channels} channels")
    expected = len(work.channel_names)
    if complete and expected and len(ranges) != expected:
        names = ", ".join(work.channel_names)
        work.add(
            "CHANNEL_COUNT_DIFFERS", case.images[0], "channels", str(len(ranges)), f"{expected} ({names})"
        )
    return first, tuple(ranges) if complete else (), "".join(hashes) if complete else ""


def _check_channel(work: _Work, path: Path, channel: NDArray[Any]) -> ChannelRange:
    if channel.dtype.kind in "iu" and channel.dtype.itemsize > 2:
        largest = max(int(channel.max()), -int(channel.min()))
        if largest > LARGEST_EXACT:
            work.add("IMAGE_NOT_EXACT", path, "voxels", f"whole numbers up to {largest}")
    finite = channel
    if channel.dtype.kind == "f":
        bad = ~np.isfinite(channel)
        if bad.any():
            found = (
                f"NaN or infinity in {pluralise(int(bad.sum()), 'voxel')}, the first at {first_index(bad)}"
            )
            work.add("IMAGE_NOT_FINITE", path, "voxels", found)
            finite = channel[~bad]
    if not finite.size:
        return ChannelRange(0.0, 0.0, 0.0)
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        work.add("IMAGE_CONSTANT", path, "voxels", f"the value {format_number(low)} everywhere")
    sample = finite.ravel()[:: max(1, finite.size // _SAMPLES)]
    inside = sample[sample > low]
    return ChannelRange(low, high, float(np.median(inside)) if inside.size else low)


def _check_label(work: _Work, grid: Grid | None) -> tuple[Volume | None, Mapping[int, int] | None]:
    """Check the label map; return it with whole values, placed in its own orientation, and its voxels by value."""
    path, case = work.case.label, work.case
    if path is None:
        return _check_probabilities(work, grid)
    volume = work.read(path, label=True)
    if volume is None:
        return None, None
    name = work.name(path)
    if grid is not None:
        _compare_grids(work, path, volume.grid, grid, "LABEL", trusted=case.reading.trust_label_array)
    values = label_values(_repaired(volume, work, path), name, case.id)
    work.findings += values.findings
    if values.whole is None:
        return None, None
    work.findings += value_findings(values.counts, work.labels, name, case)
    found = fragments(values.whole, name, case.id)
    if found is not None:
        work.findings.append(found)
    label = volume.with_data(values.whole[None], kind="label")
    return label, values.counts


def _check_probabilities(work: _Work, grid: Grid | None) -> tuple[Volume | None, Mapping[int, int] | None]:
    """Check label probabilities; return the label map of the most probable labels, and its voxels by value."""
    path, case, labels = work.case.probabilities, work.case, work.labels
    if path is None or work.read(path) is None or grid is None or labels is None:
        return None, None
    try:
        classes = read_case_label(case, labels, grid)
    except DataError as error:
        work.add("PROBABILITIES_INVALID", path, "label probabilities", str(error).removeprefix(f"{path}: "))
        return None, None
    label = classes.with_data(labels.to_values(classes.data))
    values, counts = np.unique(label.data, return_counts=True)
    return label, {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _repaired(volume: Volume, work: _Work, path: Path) -> Volume:
    """Return a label map with the repairs of its values; values that a repair does not fit stay as they are."""
    reading = work.case.reading
    if not reading.round_labels and not reading.label_values:
        return volume
    try:
        return volume.with_data(repaired_values(volume.data, reading, path))
    except DataError:
        return volume


def _check_instances(work: _Work, grid: Grid | None) -> Volume | None:
    """Check the instance map and return it."""
    path, case = work.case.instances, work.case
    if path is None:
        return None
    volume = work.read(path, label=True)
    if volume is None:
        return None
    if grid is not None:
        _compare_grids(work, path, volume.grid, grid, "LABEL", trusted=case.reading.trust_label_array)
    values = label_values(volume, work.name(path), case.id)
    work.findings += values.findings
    if values.whole is None:
        return None
    low, high = int(values.whole.min()), int(values.whole.max())
    if low < 0 or high > LARGEST_ID:
        work.add("INSTANCES_INVALID", path, "ids", f"{low} to {high}")
    elif high == 0:
        work.add("LABEL_EMPTY", path, "voxels", "0 instances", "at least one instance")
    return volume.with_data(values.whole[None], kind="label")


def _compare_grids(
    work: _Work, path: Path, grid: Grid, expected: Grid, what: str, *, trusted: bool = False
) -> None:
    """Add a finding if a grid, brought into the same orientation, is not that of the image."""
    axes, flips = reorientation_like(grid, expected)
    turned = grid.permuted(axes, flips)
    if expected.in_pixels and not grid.in_pixels and min(expected.shape) > 1:
        work.add(
            "READER_NOTE",
            work.case.images[0],
            "voxel size",
            "none",
            f"{format_dimensions(grid.spacing)} mm as in {work.name(path)}",
        )
    unknown = path in work.guessed or work.case.images[0] in work.guessed  # which is an error of its own
    if turned.matches(expected) or ((trusted or unknown) and grid.shape == expected.shape):
        return
    if turned.shape != expected.shape and grid.shape != expected.shape:
        work.add(
            f"SHAPE_{what}_DIFFERS",
            path,
            "shape",
            f"{format_dimensions(grid.shape)} voxels",
            f"{format_dimensions(expected.shape)} voxels",
        )
        return
    distance = turned.distance(expected) if turned.shape == expected.shape else expected.distance(grid)
    found = f"{_place(grid)}; corners up to {distance:.3g} mm apart"
    work.add(f"GRID_{what}_DIFFERS", path, "affine", found, _place(expected))


def _place(grid: Grid) -> str:
    first = ", ".join(f"{value:.6g}" for value in grid.affine[:3, 3])
    return f"{format_dimensions(grid.spacing)} mm, {grid.axcodes}, first voxel at ({first}) mm"


def _voxel_hash(volume: Volume) -> str:
    """Return a hash of the voxels in RAS orientation as float32, whatever the type and orientation of the file."""
    digest = hashlib.blake2b(digest_size=16)
    data = reorient_array(volume.data, volume.grid.axcodes, AXES)
    digest.update(str(data.shape).encode())
    for channel in data:
        for sheet in channel:
            with np.errstate(over="ignore"):
                digest.update(np.ascontiguousarray(sheet, dtype=np.float32).tobytes())
    return digest.hexdigest()
