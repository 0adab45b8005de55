from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest

from medseg.io.file_content import GZIP
from medseg.io.gzip_stream import GzipStream, compressing

REPEATED = b"voxel" * 100_000
NOISE = np.random.default_rng(0).bytes(700_000)


def content(packed: bytes, step: int) -> tuple[bytes, int]:
    stream = GzipStream(io.BytesIO(packed))
    parts = []
    while part := stream.read(step):
        assert len(part) <= step
        parts.append(part)
    return b"".join(parts), stream.trailing


@pytest.mark.parametrize("step", [777, 1 << 20])
@pytest.mark.parametrize("data", [REPEATED, NOISE, b""], ids=["repeated", "noise", "empty"])
def test_members_padding_and_other_bytes_after_them(data: bytes, step: int) -> None:
    packed = gzip.compress(data)
    assert content(packed, step) == (data, 0)
    assert content(packed + bytes(400_000), step) == (data, 0)
    assert content(packed + gzip.compress(b"second") + bytes(2), step) == (data + b"second", 0)
    assert content(packed + bytes(400_000) + gzip.compress(b"x"), step) == (data + b"x", 0)
    assert content(packed + b"garbage" * 5, step) == (data, 35)
    assert content(packed + b"\x1f", step) == (data, 1)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (-6, r"CRC: found 0x[0-9a-f]{8}, expected 0x[0-9a-f]{8}"),
        (-2, r"length: found \d+ bytes, expected \d+"),
    ],
)
def test_checksum_and_length_are_verified(place: int, message: str) -> None:
    packed = bytearray(gzip.compress(NOISE))
    packed[place] ^= 1
    with pytest.raises(OSError, match=message):
        content(bytes(packed), 1000)


@pytest.mark.parametrize("size", [3, 5, 20, 300_000, -8, -1])
def test_an_early_end_is_noticed(size: int) -> None:
    with pytest.raises(EOFError, match="end early"):
        content(gzip.compress(NOISE)[:size], 1000)


def test_what_is_written_is_read_by_others_and_always_the_same() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        with compressing(file) as stream:
            stream.write(REPEATED)
            stream.write(NOISE)
    assert files[0].getvalue() == files[1].getvalue()
    assert gzip.decompress(files[0].getvalue()) == REPEATED + NOISE


def member_with_all_fields(data: bytes, checksum: int) -> bytes:
    """A gzip member with an extra field, a name, a comment and a checksum of its header."""
    fields = b"\x02\x00ab" + b"name\0" + b"comment\0"
    header = GZIP + b"\x08" + bytes([2 | 4 | 8 | 16]) + bytes(6) + fields
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = packer.compress(data) + packer.flush()
    return header + body + checksum.to_bytes(4, "little") + len(data).to_bytes(4, "little")


def test_the_checksum_of_a_later_member_with_all_fields_is_compared() -> None:
    right = member_with_all_fields(b"voxels", zlib.crc32(b"voxels"))
    assert content(right, 777) == (b"voxels", 0)
    with pytest.raises(OSError, match=f"CRC: found 0x{zlib.crc32(b'voxels'):08x}, expected 0x00000007"):
        content(right + member_with_all_fields(b"voxels", 7), 777)


def test_many_bytes_after_the_content_are_counted() -> None:
    assert content(gzip.compress(b"voxels") + b"garbage" * 300_000, 777) == (b"voxels", 2_100_000)
