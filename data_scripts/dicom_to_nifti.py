"""Convert folders that each hold one DICOM series to NIfTI, with their exact geometry.

The affine of a tilted gantry keeps its shear; a series with a missing or doubled slice is refused. Nothing
but voxels and geometry is written: no name, date or description. Files are called as their folder, so give
--name if the folder is called after a patient.

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
    """Run the command; return 1 if any series could not be converted, after trying all."""
    options = _parser().parse_args(arguments)
    if options.name and len(options.folders) > 1:
        print("error: --name: found several folders, expected one. Leave it out.", file=sys.stderr)
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
    """Write one series as ``out/NAME.nii.gz``; return a line that says what was written.

    Raises:
        DataError: not one whole series, or the file exists.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder that holds one DICOM series. Check the path.")
    path = out / f"{sanitised_id(name or folder.resolve().name)}.nii.gz"
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already. Give --overwrite or another --name.")
    volume = read(folder)
    write(volume, path)
    return f"{path}: {volume}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that each hold one DICOM series")
    parser.add_argument("--out", type=Path, required=True, help="folder for the NIfTI files")
    parser.add_argument("--name", help="name of the file, without suffix; for a single folder")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    sys.exit(main())
