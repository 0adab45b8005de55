"""Checks of MetaImage and NRRD headers before ITK opens the files.

ITK opens any data file that a header names, so an image from an unknown source could expose any file of this machine;
and an invalid number of axes ends the whole process.
"""

from __future__ import annotations

import re
from pathlib import Path

from medseg.errors import DataError

HEADER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_LONGEST = 1 << 20  # bytes; segmentations name each label in their header
_MOST_AXES = 4
_DATA_FILE = re.compile(r"\s*data\s*file\s*:(?!=)\s*(.*)", re.IGNORECASE)


def check_header(path: Path) -> None:
    """Raise unless a file holds its voxels or names a file in its own folder, and has a valid number of axes.

    Args:
        path: File with one of `HEADER_SUFFIXES`.

    Raises:
        DataError: The header is not readable or refers to something else.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_LONGEST)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if path.suffix.lower() in (".mha", ".mhd"):
        _check_meta_image(head, path)
    else:
        _check_nrrd(head, path)


def _check_meta_image(head: bytes, path: Path) -> None:
    end = re.search(rb"elementdatafile[^\r\n]*", head, re.IGNORECASE)  # the header ends here
    if end is None:
        raise _unreadable(path, "found no ElementDataFile, expected a MetaImage header")
    lines = re.split(r"[\r\n]+", head[: end.end()].decode("latin-1"))
    fields = _fields(lines, "[=:]", ("NDims", "DimSize", "ElementNumberOfChannels", "ElementDataFile"), path)
    name = fields.get("ElementDataFile", "")
    local = name.upper() == "LOCAL"
    if not local and path.suffix.lower() == ".mha":
        raise DataError(
            f"{path}: ElementDataFile: found {name!r:.100}, expected LOCAL, because an .mha file holds its own voxels. "
            "Write the image again."
        )
    if not local:
        _check_beside(name, "ElementDataFile", path)
    _check_axes(fields, "NDims", "DimSize", path)
    channels = fields.get("ElementNumberOfChannels", "1")
    if not _is_whole(channels):
        raise _unreadable(path, f"ElementNumberOfChannels: found {channels!r:.40}, expected a whole number")


def _check_nrrd(head: bytes, path: Path) -> None:
    if not head.startswith(b"NRRD"):
        raise _unreadable(path, "expected an NRRD header")
    text = re.split(rb"\n\r?\n", head, maxsplit=1)[0].decode("latin-1")
    lines = [line for line in re.split(r"[\r\n]+", text) if not line.startswith("#")]
    names = [found[1].strip() for line in lines if (found := _DATA_FILE.match(line))]
    if names and path.suffix.lower() == ".nrrd":
        raise DataError(
            f"{path}: data file: found {names[0]!r:.100}, expected none, because an .nrrd file holds its own voxels. "
            "Write the image again."
        )
    for name in names:
        _check_beside(name, "data file", path)
    lower = [line.lower() for line in lines]  # field names are case-insensitive in NRRD, but not in MetaImage
    _check_axes(_fields(lower, ":(?!=)", ("dimension", "sizes"), path), "dimension", "sizes", path)


def _fields(lines: list[str], separator: str, names: tuple[str, ...], path: Path) -> dict[str, str]:
    """Return the values of the fields called `names`; each may occur once."""
    found: dict[str, str] = {}
    for line in lines:
        key, *rest = re.split(separator, line, maxsplit=1)
        name = key.strip()
        if name not in names or not rest:
            continue
        if name in found:
            raise _unreadable(path, f"found {name} twice, expected it once")
        found[name] = rest[0].strip()
    return found


def _check_beside(name: str, field: str, path: Path) -> None:
    """Raise unless `name` is the plain name of a file in the folder of `path`."""
    plain = name.removeprefix("./")
    if not plain or plain == ".." or re.search(r"[/\\%:\0]", plain) or plain.upper().startswith("LIST"):
        raise DataError(
            f"{path}: {field}: found {name!r:.100}, expected the name of one file in the same folder. Write the image in one file."
        )


def _check_axes(fields: dict[str, str], count: str, sizes: str, path: Path) -> None:
    axes = fields.get(count, "")
    if not _is_whole(axes) or not 2 <= int(axes) <= _MOST_AXES:
        raise _unreadable(path, f"{count}: found {axes!r:.40}, expected 2 to {_MOST_AXES}")
    lengths = fields.get(sizes, "").split()
    if len(lengths) != int(axes) or not all(map(_is_whole, lengths)):
        raise _unreadable(
            path, f"{sizes}: found {fields.get(sizes, '')!r:.60}, expected {axes} positive whole numbers"
        )


def _is_whole(text: str) -> bool:
    """Return whether `text` is a positive whole number that every program reads as such."""
    return re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is not None


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: not readable ({reason}). Copy the file again or convert it.")
