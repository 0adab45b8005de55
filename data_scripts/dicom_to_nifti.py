"""Convert folders that each contain one DICOM series to NIfTI, with their exact geometry.

The affine of a tilted gantry keeps its shear. A series with a missing or duplicate slice is refused. Only voxels and
geometry are written: no name, date or description. A file is named after its folder, so give --name if the folder has the
name of a patient.

    python data_scripts/dicom_to_nifti.py series/ct_1 series/ct_2 --out images
    python data_scripts/dicom_to_nifti.py exported --out images --name case_001
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.names import sanitised_id
from medseg.errors import DataError, MedsegError
from medseg.io.files import read, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, which is 1 if any series could not be converted.

    Args:
        arguments: Command line; None reads that of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    if options.name and len(options.folders) > 1:
        print(
            "error: --name: found several folders, expected one. Remove --name, or convert one folder at a time.",
            file=sys.stderr,
        )
        return 1
    failed = 0
    for folder in options.folders:
        try:
            print(convert(folder, options.out, options.name, options.overwrite))
        except MedsegError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    if failed and len(options.folders) > 1:
        print(f"{failed} of {len(options.folders)} series were not converted", file=sys.stderr)
    return 1 if failed else 0


def convert(folder: Path, out: Path, name: str | None = None, overwrite: bool = False) -> str:
    """Write one series as ``out/NAME.nii.gz`` and return a line with its path and geometry.

    Args:
        folder: Folder with the files of the series.
        out: Folder for the NIfTI file.
        name: Name of the file without suffix; None uses the name of `folder`.
        overwrite: Whether to replace an existing file.

    Returns:
        One line of text.

    Raises:
        DataError: The folder does not contain exactly one complete series, or the file exists.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: found no such folder, expected one with a DICOM series. Check the path.")
    path = out / f"{sanitised_id(name or folder.resolve().name)}.nii.gz"
    if path.exists() and not overwrite:
        raise DataError(f"{path}: found an existing file. Give --overwrite or another --name.")
    volume = read(folder)
    write(volume, path)
    return f"{path}: {volume}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that each contain one DICOM series")
    parser.add_argument("--out", type=Path, required=True, help="folder for the NIfTI files")
    parser.add_argument("--name", help="name of the file, without suffix; for a single folder")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
