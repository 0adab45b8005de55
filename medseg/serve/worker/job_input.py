"""The uploaded file of a job as an image: archives are unpacked, and their members get neutral names.

Names of files and folders often identify a patient. They would appear in messages and records.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medseg.data.datasets.names import CHANNEL_FILE
from medseg.errors import DataError
from medseg.io.files import stem_of, suffix_of
from medseg.serve.job import ARCHIVE, RETRIEVED
from medseg.storage.archives import ArchiveError, extract

MAX_MEMBERS = 20_000
_UNPACKED, _SERIES = "unpacked", "series"
_DIRECTORY = "DICOMDIR"  # the directory of a disk, which lists other files by name
_DETACHED = (".mhd", ".nhdr")
_REMEDY = "Send a zip archive of one image or one DICOM series."


def job_input(folder: Path, upload: str, max_bytes: int) -> Path:
    """Return the path of the image of a job.

    Args:
        folder: Folder of the job.
        upload: Name of the uploaded file in it, or of the folder of a series of the DICOMweb server.
        max_bytes: Largest size of an unpacked archive.

    Returns:
        A file, or a folder with a DICOM series or with the channels of one image.

    Raises:
        DataError: An archive is damaged, unsafe or too large.
    """
    path = folder / upload
    if upload == RETRIEVED:
        return path
    series = folder / _SERIES
    shutil.rmtree(series, ignore_errors=True)  # of an earlier start
    if path.name.endswith(".dcm"):
        series.mkdir()
        shutil.copyfile(path, series / "00000.dcm")
        return series
    if not path.name.endswith(ARCHIVE):
        return path
    unpacked = folder / _UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        extract(path, unpacked, max_bytes=max_bytes, max_members=MAX_MEMBERS)
        series.mkdir()
        _gather(unpacked, series)
    except ArchiveError as error:
        raise DataError(f"archive: {error.reason}. {_REMEDY}") from None
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return series


def _gather(source: Path, target: Path) -> None:
    """Move the files of a folder, and of all folders in it, into one folder under numbers.

    Hidden files and directories of disks are left out. DICOM files say themselves which series they belong to.
    """
    stems: dict[tuple[Path, str], int] = {}
    for file in sorted(source.rglob("*")):
        words = file.relative_to(source).parts
        hidden = any(word.startswith((".", "__MACOSX")) for word in words)
        if file.is_file() and not hidden and file.name.upper() != _DIRECTORY:
            file.rename(target / _neutral_name(file, stems))


def _neutral_name(file: Path, stems: dict[tuple[Path, str], int]) -> str:
    """Return a name that keeps the suffix and the channel number; files with the same stem keep a common one."""
    suffix, stem = suffix_of(file), stem_of(file)
    if suffix in _DETACHED:
        raise DataError(
            f"archive: found a header without its voxels ({suffix}), expected files that hold both. Send .mha or .nrrd."
        )
    match = CHANNEL_FILE.fullmatch(stem) if suffix else None
    number = stems.setdefault((file.parent, match["id"] if match else stem), len(stems))
    channel = f"_{match['channel']}" if match else ""
    return f"{number:05d}{channel}{suffix}"
