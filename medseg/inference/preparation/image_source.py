"""Read the image that a user names: a volume, a file, a DICOM folder, one file per channel, or a case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_image
from medseg.data.preprocessing.unlike_training import check_against_model
from medseg.errors import ConfigError, DataError
from medseg.io.files import decoded_bytes
from medseg.model_folder.settings import SavedModel
from medseg.runtime.memory import format_size, process_memory
from medseg.volumes.volume import Volume

Source = Volume | Case | str | Path | Sequence[str | Path | None]
"""An image to predict; of one file per channel, None stands for an absent one."""

_ALWAYS_READ = 100 * 10**6  # bytes of an image that is read whatever the budget


def read_source(source: Source, saved: SavedModel, max_memory: int | None = None) -> tuple[Volume, str]:
    """Read the image of a source.

    Args:
        source: A volume, a file, a DICOM folder, one file per channel (None for an absent one), or a case.
        saved: Settings of the model that the image is for.
        max_memory: Maximum resident memory of the process in bytes; None for no limit.

    Returns:
        The image, and its name for messages.

    Raises:
        DataError: The image cannot be read, or has another number of channels than the model.
        ConfigError: `max_memory` is too small to read it.
    """
    if isinstance(source, Volume):
        return source, "image"
    case = _case_of(source)
    _require_channels(case, saved)
    _check_size(case.images, max_memory)
    image, where = read_case_image(case), str(case.images[0])
    files = [path.name for path in case.images]
    check_against_model(image, saved.channel_names, saved.window, files, where)
    return image, where


def _case_of(source: Case | str | Path | Sequence[str | Path | None]) -> Case:
    """Return the case of a source that is not a volume."""
    if isinstance(source, Case):
        return source
    if not isinstance(source, (str, Path, Sequence)):
        raise DataError(
            f"image: found a {type(source).__name__}, expected a Volume, a path, a list of paths or a Case. Give an "
            "array its grid: medseg.Volume(array[None], medseg.Grid.from_spacing(array.shape, spacing))."
        )
    paths = (source,) if isinstance(source, (str, Path)) else source
    absent = tuple(index for index, path in enumerate(paths) if path is None)
    return Case("image", tuple(Path(path) for path in paths if path is not None), absent=absent)


def _require_channels(case: Case, saved: SavedModel) -> None:
    """Raise `DataError` if a case lacks channels, unless the model was trained with such cases."""
    if case.absent and saved.absent_channels == "refuse":
        names = saved.channel_names
        missing = ", ".join(names[index] for index in case.absent if index < len(names))
        raise DataError(
            f"{case.images[0]}: channels: found no file of {missing}, expected {len(names)} ({', '.join(names)}), because the model was "
            "trained with complete cases. Give one file per channel, or use a model that was trained with data.absent_channels=zeros."
        )


def _check_size(paths: Sequence[Path], max_memory: int | None) -> None:
    """Raise `ConfigError` before reading a large image that exceeds the allowed memory by itself.

    Smaller images are read: the memory plan then names the least memory that would suffice.
    """
    if max_memory is None:
        return
    voxels = sum(decoded_bytes(path) for path in paths if path.is_file())
    needed = process_memory() + voxels
    if voxels > _ALWAYS_READ and needed > max_memory:
        raise ConfigError(
            f"{paths[0]}: max_memory: found {format_size(max_memory)}, expected more than {format_size(needed, round_up=True)}, "
            "which the process and the voxels of this image need together. Allow more memory."
        )
