"""Prepared cases on disk, stored so that a random patch needs one short read.

Each case is a folder of plain ``.npy`` files that are memory-mapped: a patch touches only its own pages, and
pages stay in the system's cache between epochs. ``benchmarks/patch_store.py`` compares this with compressed
stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.patches.class_locations import ClassLocations
from medseg.data.preprocessing.training_data import ImageMeasures
from medseg.errors import DataError, MedsegError
from medseg.io.file_content import permission_denied
from medseg.storage.json_files import read_object

# Arrays that a process keeps mapped. Each needs a file descriptor, and some systems allow only 256 per process. In larger
# datasets the least recently read arrays are unmapped, and mapped again when they are needed.
MAPS = 128
GRID = "grid.json"
"""File of a prepared case with the shape and the voxel size of its arrays."""
MEASURES = "measures.json"
"""File of a prepared case with what `StoredCase.measures` returns."""
ABSENT = "absent.json"
"""File of a prepared case with what `StoredCase.absent` returns; only if there are any."""
# Axes and kinds; other arrays are (4, "iu").
_EXPECTED = {"image.npy": (4, "f"), "probabilities.npy": (4, "f"), "locations.npy": (2, "iu")}


@dataclass(frozen=True)
class StoredCase:
    """One prepared case. Its arrays are memory-mapped and never loaded whole; see `MAPS`.

    Reading an array raises `DataError` if its file is missing, damaged, or not readable for this user.

    Attributes:
        id: Id of the case.
        folder: Folder that contains its arrays.
    """

    id: str
    folder: Path

    @property
    def image(self) -> NDArray[np.floating[Any]]:
        """The intensities `(C, X, Y, Z)`, float32 or float16."""
        return _mapped(self.folder / "image.npy")

    @property
    def label(self) -> NDArray[Any]:
        """The class indices `(1, X, Y, Z)`; values from K on are the label sets of `medseg.labels.label_sets`."""
        return _mapped(self.folder / "label.npy")

    @property
    def instances(self) -> NDArray[np.int32]:
        """The instance ids `(1, X, Y, Z)`, 0 for background; only if `has_instances`."""
        return _mapped(self.folder / "instances.npy")

    @property
    def first_stage(self) -> NDArray[Any]:
        """The class indices `(1, X, Y, Z)` of the first stage; only if the case was stored with one."""
        return _mapped(self.folder / "first_stage.npy")

    @property
    def masks(self) -> NDArray[np.uint8]:
        """The voxels `(M, X, Y, Z)` inside the masks of `mask_rows`; only with a masked normalisation."""
        return _mapped(self.folder / "masks.npy")

    @property
    def probabilities(self) -> NDArray[np.float16]:
        """The probabilities `(K - 1, X, Y, Z)` of the foreground classes; only if `has_probabilities`."""
        return _mapped(self.folder / "probabilities.npy")

    @cached_property
    def has_probabilities(self) -> bool:
        """Whether the case has soft labels."""
        return (self.folder / "probabilities.npy").is_file()

    @cached_property
    def has_instances(self) -> bool:
        """Whether the case has an instance map."""
        return (self.folder / "instances.npy").is_file()

    @cached_property
    def absent(self) -> tuple[int, ...]:
        """The indices of channels that the case lacks, which are 0."""
        file = self.folder / ABSENT
        return tuple(read_object(file)["channels"]) if file.is_file() else ()

    @property
    def class_locations(self) -> ClassLocations:
        """The voxels `(N, 3)` of each foreground class or region that is present, numbered from 1, at most 10,000 each.

        If the dataset has an ignore label, number 0 holds annotated voxels.
        """
        return ClassLocations(_mapped(self.folder / "locations.npy"))

    @cached_property
    def has_foreground(self) -> bool:
        """Whether any foreground class or region is present."""
        table = _mapped(self.folder / "locations.npy")
        return len(table) > 0 and int(table[-1, 0]) > 0  # rows are sorted by number

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, and whether there are instances and probabilities, which must not change if a file is lost."""
        kept = ("id", "folder", "has_instances", "has_probabilities")
        return {name: value for name, value in vars(self).items() if name in kept}

    @property
    def measures(self) -> ImageMeasures:
        """The voxel size, field of view, intensities and volumes of labels of the image before its preparation."""
        file = self.folder / MEASURES
        try:
            return ImageMeasures.parse(read_object(file), source=str(file))
        except MedsegError as error:
            raise DataError(
                f"{error} Delete the folder {self.folder} and start or resume the training; the case is prepared again."
            ) from None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The voxel size along X, Y, Z in mm."""
        file = self.folder / GRID
        try:
            x, y, z = map(float, read_object(file)["spacing"])
        except (MedsegError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file}: found no voxel size ({error}), expected three numbers. Delete the folder {self.folder} and start or "
                "resume the training; the case is prepared again."
            ) from None
        return x, y, z

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """The number of voxels along X, Y, Z."""
        x, y, z = self.image.shape[1:]
        return (x, y, z)

    def check(self, *maps: str) -> None:
        """Raise unless all arrays exist, can be mapped and have one shape.

        Args:
            maps: Names of the maps that the case must have in addition to its label map.

        Raises:
            DataError: An array is missing or damaged.
        """
        _ = self.class_locations
        for name in ("image", "label", *maps):
            file = self.folder / f"{name}.npy"
            if _mapped(file).shape[1:] != self.shape:
                raise DataError(
                    f"{file}: found the shape {_mapped(file).shape[1:]}, expected {self.shape}, that of image.npy. "
                    f"Delete the folder {self.folder} and start or resume the training; the case is prepared again."
                )


@lru_cache(maxsize=MAPS)
def _mapped(file: Path) -> NDArray[Any]:
    """Return the memory-mapped array of a file that never changes."""
    again = f"Delete the folder {file.parent} and start or resume the training; the case is prepared again."
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file}: missing, expected an array of a prepared case. {again}") from None
    except PermissionError:
        raise permission_denied(file) from None
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:  # from NumPy's parser
        reason = "" if "pickle" in str(error) else f" ({error})"
        raise DataError(
            f"{file}: found a damaged array of a prepared case{reason}, expected a file in NumPy's format. {again}"
        ) from None
    axes, kinds = _EXPECTED.get(file.name, (4, "iu"))
    if array.ndim != axes or array.dtype.kind not in kinds:
        raise DataError(
            f"{file}: found an array of {array.ndim} axes of {array.dtype}, expected {axes} axes of "
            f"{'floating-point' if kinds == 'f' else 'whole'} numbers. {again}"
        )
    return array
