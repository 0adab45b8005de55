"""The content of images and label maps, by which a later change is recognised whatever file holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.data.datasets.cases import UNDECIDED, Case, ReadingOptions
from medseg.errors import MedsegError
from medseg.io.files import read_labels
from medseg.storage.file_state import stamp_of
from medseg.storage.stamps import short_hash
from medseg.volumes.volume import Volume
from medseg.volumes.voxel_hash import voxel_hash


@dataclass(frozen=True)
class VoxelState:
    """The content of an image or label map, and the stamp by which it is usually recognised without reading it.

    Attributes:
        stamp: Stamp of its files, see `FileState`.
        hash: Hash of shape, affine and voxels, see `voxel_hash`. It stays the same if a file is copied or compressed again.
    """

    stamp: str
    hash: str

    def still_holds(self, stamp: Callable[[], str], read: Callable[[], str]) -> bool:
        """Return whether the files have the same content as then.

        Args:
            stamp: Returns their stamp now.
            read: Reads them and returns their hash; called only if the stamp differs.

        Returns:
            False also if a file is missing or damaged.
        """
        try:
            return stamp() == self.stamp or read() == self.hash
        except (OSError, MedsegError):
            return False


def input_files(case: Case) -> tuple[Path, ...]:
    """Return the files that a case is predicted from."""
    return case.images if case.first_stage is None else (*case.images, case.first_stage)


def input_stamp(case: Case) -> str:
    """Return the stamp of the files that a case is predicted from, and of how they are read.

    Args:
        case: The case.

    Returns:
        The stamp of the files, see `FileState`, if nothing was decided about their reading.

    Raises:
        OSError: A file is missing.
    """
    reading, stamp = case.reading, stamp_of(input_files(case))
    plain = ReadingOptions(reading.orientation_from, series=reading.series, uneven=reading.uneven)
    decided = [] if plain == UNDECIDED else [asdict(plain)]
    absent = [{"absent": case.absent}] if case.absent else []
    return short_hash([stamp, *decided, *absent]) if decided or absent else stamp


def input_hash(case: Case, image: Volume) -> str:
    """Return the hash of what a case is predicted from.

    Args:
        case: The case.
        image: Its image as it was read.

    Returns:
        The hash of the image; with a label map of a first stage, the one of both.

    Raises:
        DataError: The label map of the first stage cannot be read.
    """
    found = voxel_hash(image)
    if case.first_stage is None:
        return found
    first_stage = voxel_hash(read_labels(case.first_stage, like=case.images[0]))
    return hashlib.blake2b(f"{found} {first_stage}".encode(), digest_size=16).hexdigest()


class InputRecorder:
    """Recorder of the content of a case while it is read; create it before the reading, and call it with the image.

    Args:
        case: The case.

    Attributes:
        state: The content; None before the image was read.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self.state: VoxelState | None = None
        try:
            self._stamp = input_stamp(case)
        except OSError:  # the reader reports what is missing
            self._stamp = ""

    def __call__(self, image: Volume) -> None:
        """Record the image; another one of the same case, read by the second model of an ensemble, is the same."""
        if self.state is None:
            self.state = VoxelState(self._stamp, input_hash(self._case, image))
