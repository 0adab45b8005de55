"""The uploaded file of a job as an image: archives are unpacked, and their members get neutral names.

Names of files and folders often identify a patient. They would appear in messages and records.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medseg.data.datasets.names import CHANNEL_FILE
from medseg.errors import DataError
from medseg.io.files import stem_of, suffix_of
from medseg.serve.job import ARCHIVE
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
        upload: Name of the uploaded file in it.
        max_bytes: Largest size of an unpacked archive.

    Returns:
        A file, or a folder with a DICOM series or with the channels of one image.

    Raises:
        DataError: An archive is damaged, unsafe or too large.
    """
    path = folder / upload
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
    except ArchiveError as error:
        raise DataError(f"archive: {error.reason}. {_REMEDY}") from None
    series.mkdir()
    try:
        _move(unpacked, series)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return _only_folder(series)


def _move(source: Path, target: Path) -> None:
    """Move the files of a folder and of those in it, with numbers as names; hidden ones and directories of disks are left out."""
    entries = [item for item in sorted(source.iterdir()) if not item.name.startswith((".", "__MACOSX"))]
    entries = [item for item in entries if item.name.upper() != _DIRECTORY]
    stems: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if entry.is_dir():
            (target / f"{number:05d}").mkdir()
            _move(entry, target / f"{number:05d}")
        else:
            entry.rename(target / _neutral_name(entry, stems))


def _neutral_name(file: Path, stems: dict[str, int]) -> str:
    """Return a name that keeps the suffix and the channel number; files with the same stem keep a common one."""
    suffix, stem = suffix_of(file), stem_of(file)
    if suffix in _DETACHED:
        raise DataError(
            f"archive: found a header without its voxels ({suffix}), expected files that hold both. Send .mha or .nrrd."
        )
    match = CHANNEL_FILE.fullmatch(stem) if suffix else None
    number = stems.setdefault(match["id"] if match else stem, len(stems))
    channel = f"_{match['channel']}" if match else ""
    # Without an image suffix, names that differ in what follows the last dot would become the same.
    return f"{number:05d}{channel}{suffix}"


def _only_folder(folder: Path) -> Path:
    """Return the innermost folder, as long as a folder holds one folder and nothing else."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]
