"""Checks of MetaImage and NRRD headers before ITK opens the files.

ITK opens any data file that a header names, so an image from an unknown source could expose any file of this machine;
and an invalid number of axes ends the whole process. For voxels that end early, ITK reports a missing file, and it does not
verify compressed ones.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from medseg.errors import DataError
from medseg.io.itk.compressed_voxels import check_compressed

HEADER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_LONGEST = 1 << 20  # bytes; segmentations name each label in their header
_MOST_AXES = 4
_META_IMAGE_SIZES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
"""Bytes of a number, by the name of its type without ``MET_``."""
_NRRD_SIZES = (
    (1, "char, signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t"),
    (2, "short, short int, signed short, signed short int, int16, int16_t"),
    (2, "ushort, unsigned short, unsigned short int, uint16, uint16_t"),
    (4, "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float"),
    (8, "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t"),
    (8, "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t, double"),
)
_META_IMAGE_FIELDS = (
    "NDims", "DimSize", "ElementNumberOfChannels", "ElementDataFile", "ElementType", "BinaryData", "CompressedData",
    "CompressedDataSize", "HeaderSize",
)  # fmt: skip
_NRRD_FIELDS = ("dimension", "sizes", "type", "encoding", "byte skip", "byteskip", "line skip", "lineskip")
_DATA_FILE = re.compile(r"\s*data\s*file\s*:(?!=)\s*(.*)", re.IGNORECASE)


def check_header(path: Path) -> None:
    """Raise unless a file holds its voxels or names a file in its own folder, and has a valid number of axes.

    Args:
        path: File with one of `HEADER_SUFFIXES`.

    Raises:
        DataError: The header is not readable or refers to something else, or the voxels are missing, damaged or end early.
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
    fields = _fields(lines, "[=:]", _META_IMAGE_FIELDS, path)
    name = fields.get("ElementDataFile", "")
    local = name.upper() == "LOCAL"
    if not local and path.suffix.lower() == ".mha":
        raise DataError(
            f"{path}: ElementDataFile: found {name!r:.100}, expected LOCAL, because an .mha file holds its own voxels. "
            "Write the image again."
        )
    if not local:
        _check_same_folder(name, "ElementDataFile", path)
    _check_axes(fields, "NDims", "DimSize", path)
    channels = fields.get("ElementNumberOfChannels", "1")
    if not _is_whole(channels):
        raise _unreadable(path, f"ElementNumberOfChannels: found {channels!r:.40}, expected a whole number")
    voxels = path if local else path.with_name(name.removeprefix("./"))
    after = end.end() + (2 if head[end.end() : end.end() + 2] == b"\r\n" else 1) if local else 0
    start, size = _offset(fields.get("HeaderSize", "0"), after), _meta_image_bytes(fields, int(channels))
    if fields.get("BinaryData", "True")[:1] in "Ff0":
        _check_length(voxels, start, None, path)
    elif fields.get("CompressedData", "False")[:1] in "Tt1":
        stored = _packed_bytes(fields, path, local)
        _check_length(voxels, start, stored, path)
        check_compressed(voxels, path, start, stored=stored, expected=size)
    else:
        _check_length(voxels, start, size, path)


def _packed_bytes(fields: dict[str, str], path: Path, local: bool) -> int | None:
    """Return the stated bytes of compressed voxels; None for a whole file of voxels.

    In the file of the header they have to be stated: ITK would return whatever is in memory.
    """
    size = fields.get("CompressedDataSize", "none")
    if _is_whole(size):
        return int(size)
    if local:
        raise _unreadable(
            path, f"CompressedDataSize: found {size!r:.40}, expected the bytes of the compressed voxels"
        )
    return None


def _meta_image_bytes(fields: dict[str, str], channels: int) -> int | None:
    """Return the bytes of the voxels; None if their type is unknown."""
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _META_IMAGE_SIZES:
        return None
    return math.prod(map(int, fields["DimSize"].split())) * channels * _META_IMAGE_SIZES[kind]


def _check_nrrd(head: bytes, path: Path) -> None:
    if not head.startswith(b"NRRD"):
        raise _unreadable(path, "expected an NRRD header")
    end = re.search(rb"\n\r?\n", head)
    text = head[: end.start() if end else None].decode("latin-1")
    lines = [line for line in re.split(r"[\r\n]+", text) if not line.startswith("#")]
    names = [found[1].strip() for line in lines if (found := _DATA_FILE.match(line))]
    if names and path.suffix.lower() == ".nrrd":
        raise DataError(
            f"{path}: data file: found {names[0]!r:.100}, expected none, because an .nrrd file holds its own voxels. "
            "Write the image again."
        )
    for name in names:
        _check_same_folder(name, "data file", path)
    lower = [line.lower() for line in lines]  # field names are case-insensitive in NRRD, but not in MetaImage
    fields = _fields(lower, ":(?!=)", _NRRD_FIELDS, path)
    _check_axes(fields, "dimension", "sizes", path)
    if len(names) > 1 or not (names or end) or fields.get("line skip", fields.get("lineskip", "0")) != "0":
        return
    voxels, start = (
        (path.with_name(names[0].removeprefix("./")), 0) if names else (path, end.end() if end else 0)
    )
    skipped = fields.get("byte skip", fields.get("byteskip", "0"))
    size, encoding = _nrrd_bytes(fields), fields.get("encoding")
    if encoding in (
        "gzip",
        "gz",
    ):  # bytes are skipped after decompression; -1 stands for all before the voxels
        _check_length(voxels, start, None, path)
        length = None if size is None or skipped == "-1" else size + _offset(skipped, 0)
        check_compressed(voxels, path, start, expected=length, several=True)
    else:
        _check_length(voxels, start + _offset(skipped, 0), size if encoding == "raw" else None, path)


def _nrrd_bytes(fields: dict[str, str]) -> int | None:
    """Return the bytes of the voxels; None if their type is unknown."""
    kind = " ".join(fields.get("type", "").split())
    size = next((size for size, names in _NRRD_SIZES if kind in names.split(", ")), None)
    if size is None:
        return None
    return math.prod(map(int, fields["sizes"].split())) * size


def _offset(skipped: str, start: int) -> int:
    """Return where voxels begin if a header skips this number of bytes; -1 stands for as many as precede the voxels."""
    return int(skipped) if _is_whole(skipped) else start


def _check_length(voxels: Path, start: int, expected: int | None, header: Path) -> None:
    """Raise unless a file holds `expected` bytes from `start` on; None expects only that it exists."""
    try:
        found = max(voxels.stat().st_size - start, 0)
    except OSError as error:
        raise DataError(
            f"{voxels}: cannot be read ({error.strerror}), expected the voxels of {header.name}. Copy the file there."
        ) from None
    if expected is not None and found < expected:
        raise DataError(
            f"{voxels}: the voxels end early: found {found} bytes, expected {expected} according to the header. Copy the file "
            "again."
        )


def _fields(lines: list[str], separator: str, names: tuple[str, ...], path: Path) -> dict[str, str]:
    """Return the value of each field in `names` that the header has, or raise if one occurs twice."""
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


def _check_same_folder(name: str, field: str, path: Path) -> None:
    """Raise unless `name` is the plain name of a file in the folder of `path`."""
    plain = name.removeprefix("./")
    if not plain or plain == ".." or re.search(r"[/\\%:\0]", plain) or plain.upper().startswith("LIST"):
        raise DataError(
            f"{path}: {field}: found {name!r:.100}, expected the name of one file in the same folder. Write the image as a single .mha or .nrrd file."
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
