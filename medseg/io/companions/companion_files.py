"""Files that are read together with an image file and are not listed in a dataset."""

from __future__ import annotations

import re
from pathlib import Path

from medseg.io.files import TIFF, suffix_of
from medseg.io.tiff import spacing_file

_LONGEST = 1 << 20  # bytes of a header
_DATA_FILE = re.compile(
    rb"^\s*(?:ElementDataFile\s*[=:]|data\s*file\s*:)\s*([^\r\n]+)", re.IGNORECASE | re.MULTILINE
)


def companion_files(path: Path) -> list[Path]:
    """Return the existing files from which voxels or geometry of an image are read in addition to `path`.

    These are the other file of a pair of .hdr and .img, the data file that an .mhd or .nhdr header names, and the JSON
    file with the spacing of a TIFF image.

    Args:
        path: Image file, or a folder such as a DICOM series, which has none.

    Returns:
        The files; empty for formats that need only one.

    Raises:
        OSError: The header cannot be read.
    """
    suffix = path.suffix.lower()
    found: list[Path] = []
    if suffix in (".hdr", ".img"):
        found = [path.with_suffix(other) for other in (".hdr", ".HDR", ".img", ".IMG")]
    elif suffix in (".mhd", ".nhdr") and path.is_file():
        with path.open("rb") as stream:
            names = _DATA_FILE.findall(stream.read(_LONGEST))
        found = [path.parent / name.decode("latin-1").strip() for name in names]
    elif suffix_of(path) in TIFF:
        sidecar = spacing_file(path)
        found = [] if sidecar is None else [sidecar]
    return [file for file in dict.fromkeys(found) if file != path and file.is_file()]
