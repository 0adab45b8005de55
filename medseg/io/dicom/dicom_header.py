"""The elements of a DICOM file that describe its image, read and checked before a decoder opens the file.

Only the top level is read, without values of sequences. Every length is compared with the size of the file, because
decoders allocate what a damaged length claims, and fill what a short file lacks from other memory.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medseg.errors import DataError
from medseg.io.file_content import permission_denied

PREAMBLE, MARK = 128, b"DICM"
PIXEL_DATA, PER_FRAME = (0x7FE00008, 0x7FE00009, 0x7FE00010), 0x52009230  # floats, doubles, whole numbers
_META_CLASS, _CLASS = 0x00020002, 0x00080016
DIRECTORY = "1.2.840.10008.1.3.10"
_IMPLICIT, _BIG, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_LONG_LENGTHS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_WHOLE_NUMBERS = (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
_LONGEST_VALUE = 4096  # bytes of the values that are kept
_DEEPEST = 32
_MOST_INFLATED = 1 << 28


@dataclass(frozen=True)
class DicomHeader:
    """The description of one DICOM file.

    Attributes:
        path: The file.
        syntax: UID of the transfer syntax.
        values: Values of the elements of the top level by tag, as text; numbers of two bytes as decimals.
        pixel_bytes: Bytes of the pixel data, None without any.
        pixel_offset: Byte of the pixel data in the file (in its decompressed part, if it is deflated).
        start: Byte of the first element after the meta information, from which on a deflated file is compressed.
    """

    path: Path
    syntax: str
    values: dict[int, str]
    pixel_bytes: int | None
    pixel_offset: int
    start: int = 0

    def text(self, tag: int) -> str:
        """Return the value of an element; an empty text if there is none."""
        return self.values.get(tag, "")

    @property
    def is_directory(self) -> bool:
        """Whether it is the directory of an export (DICOMDIR)."""
        return DIRECTORY in (self.text(_META_CLASS), self.text(_CLASS))

    def number(self, tag: int, default: int = 0) -> int:
        """Return the whole number in an element; `default` if there is none."""
        text = self.text(tag).split("\\")[0].strip()
        return int(text) if re.fullmatch("[+-]?[0-9]{1,10}", text) else default


def has_mark(path: Path) -> bool:
    """Return whether a file has the prefix ``DICM`` after its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK
    except PermissionError:
        raise permission_denied(path) from None
    except OSError:
        return False


def read_header(path: Path) -> DicomHeader:
    """Read the elements of a file up to its pixel data.

    Args:
        path: A file with the prefix ``DICM``.

    Returns:
        The description.

    Raises:
        DataError: An element claims more bytes than the file has, or the file ends within one.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        meta = _Reader(file, size, path)
        file.seek(PREAMBLE + len(MARK))
        values: dict[int, str] = {}
        meta.read_into(values, group=2)
        syntax = values.get(0x00020010, _IMPLICIT)
        source: BinaryIO = file
        begin = file.tell()
        end, start = size, begin
        if syntax == _DEFLATED:
            content = zlib.decompressobj(-15).decompress(file.read(), _MOST_INFLATED)
            source, end, start = io.BytesIO(content), len(content), 0
        source.seek(start)
        named = source.read(6)[4:]  # some files are implicit although their syntax is not
        source.seek(start)
        implicit = syntax == _IMPLICIT or not (named.isalpha() and named.isupper())
        data = _Reader(source, end, path, implicit=implicit, big=syntax == _BIG)
        data.read_into(values)
    return DicomHeader(path, syntax, values, data.pixel_bytes, data.pixel_offset, begin)


def replace_before_pixels(header: DicomHeader, old: bytes, new: bytes) -> bytes:
    """Return the content of a file with some bytes replaced, except in its pixel data.

    Args:
        header: Description of the file.
        old: Bytes to replace.
        new: As many other bytes.

    Returns:
        The content, compressed again if the file is deflated.
    """
    content = header.path.read_bytes()
    if header.syntax != _DEFLATED:
        return content[: header.pixel_offset].replace(old, new) + content[header.pixel_offset :]
    inner = zlib.decompressobj(-15).decompress(content[header.start :])
    inner = inner[: header.pixel_offset].replace(old, new) + inner[header.pixel_offset :]
    packer = zlib.compressobj(wbits=-15)
    return content[: header.start] + packer.compress(inner) + packer.flush()


class _Reader:
    """Elements of a stream, in order."""

    def __init__(
        self, file: BinaryIO, end: int, path: Path, *, implicit: bool = False, big: bool = False
    ) -> None:
        self._file, self._end, self._path = file, end, path
        self._implicit, self._big = implicit, big
        self.pixel_bytes: int | None = None
        self.pixel_offset = 0

    def read_into(self, values: dict[int, str], group: int | None = None) -> None:
        """Read elements up to the pixel data, or those of one group."""
        while self._file.tell() < self._end:
            start = self._file.tell()
            tag, kind, length = self._lead()
            if group is not None and tag >> 16 != group:
                self._file.seek(start)
                return
            if tag in PIXEL_DATA:
                self.pixel_offset = self._file.tell()
                self.pixel_bytes = self._fragments() if length == _UNDEFINED else self._checked(length, tag)
                return
            if length == _UNDEFINED:
                values[tag] = ""
                self._skip_items(0)
            elif self._checked(length, tag) <= _LONGEST_VALUE and kind != b"SQ":
                values[tag] = self._value(tag, kind, self._file.read(length))
            else:
                values[tag] = ""
                self._file.seek(length, io.SEEK_CUR)

    def _value(self, tag: int, kind: bytes, content: bytes) -> str:
        if kind == b"US" or (self._implicit and tag in _WHOLE_NUMBERS):
            return str(int.from_bytes(content[:2], "big" if self._big else "little"))
        return content.rstrip(b" \0").decode("latin-1").strip()

    def _lead(self, *, item: bool = False) -> tuple[int, bytes, int]:
        """Return tag, kind of value and length of the next element."""
        lead = self._bytes(8)
        order: str = "big" if self._big else "little"
        tag = self._number(lead[:2], order) << 16 | self._number(lead[2:4], order)
        if self._implicit or item or tag >> 16 == 0xFFFE:
            return tag, b"", self._number(lead[4:], order)
        kind = lead[4:6]
        if kind in _LONG_LENGTHS:
            return tag, kind, self._number(self._bytes(4), order)
        return tag, kind, self._number(lead[6:], order)

    @staticmethod
    def _number(content: bytes, order: str) -> int:
        return int.from_bytes(content, "big" if order == "big" else "little")

    def _bytes(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise self._error(f"found its end at byte {self._end} within an element, expected pixel data")
        return content

    def _checked(self, length: int, tag: int) -> int:
        left = self._end - self._file.tell()
        if length > left:
            raise self._error(
                f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}): found a length of {length} bytes, expected at most the {left} that "
                "are left"
            )
        return length

    def _skip_items(self, depth: int) -> None:
        """Skip the items of a sequence of undefined length."""
        if depth > _DEEPEST:
            raise self._error(f"found sequences that are nested deeper than {_DEEPEST}")
        while True:
            tag, _, length = self._lead(item=True)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise self._error(f"found tag {tag:08x} in a sequence, expected an item")
            if length != _UNDEFINED:
                self._file.seek(self._checked(length, tag), io.SEEK_CUR)
                continue
            self._skip_elements(depth)

    def _skip_elements(self, depth: int) -> None:
        """Skip the elements of an item of undefined length."""
        while True:
            tag, _, length = self._lead()
            if tag == _ITEM_END:
                return
            if length == _UNDEFINED:
                self._skip_items(depth + 1)
            else:
                self._file.seek(self._checked(length, tag), io.SEEK_CUR)

    def _fragments(self) -> int:
        """Return the bytes of compressed pixel data, whose end must be marked."""
        total = 0
        while True:
            tag, _, length = self._lead(item=True)
            if tag == _SEQUENCE_END:
                return total
            if tag != _ITEM or length == _UNDEFINED:
                raise self._error(f"found tag {tag:08x} in compressed pixel data, expected a fragment")
            total += self._checked(length, tag)
            self._file.seek(length, io.SEEK_CUR)

    def _error(self, what: str) -> DataError:
        return DataError(f"{self._path}: damaged or cut off: {what}. Copy the file again.")


def expected_pixel_bytes(header: DicomHeader) -> int:
    """Return the bytes that the uncompressed pixels of a file need.

    Args:
        header: Description of the file.

    Returns:
        Rows × columns × samples × bytes per sample × frames.
    """
    shape = (0x00280010, 0x00280011)
    bits = math.prod(header.number(tag) for tag in shape) * max(1, header.number(0x00280002, 1))
    return bits * max(1, header.number(0x00280100, 16)) // 8 * max(1, header.number(0x00280008, 1))
