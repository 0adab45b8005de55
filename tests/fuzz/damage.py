"""Damage to the bytes of a file, as it happens to real files, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Flip one to four bits."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_in_the_header(content: bytes, rng: random.Random) -> bytes:
    """Replace one to three bytes among the first 400 by extreme or random values."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if changed:
            changed[rng.randrange(min(400, len(changed)))] = rng.choice(
                (0, 1, 127, 128, 255, rng.randrange(256))
            )
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """Cut off the end."""
    return content[: rng.randrange(len(content) + 1)]


def lose_a_part(content: bytes, rng: random.Random) -> bytes:
    """Leave out up to 600 bytes in the middle."""
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randint(1, 600) :]


def zero_a_block(content: bytes, rng: random.Random) -> bytes:
    """Overwrite up to 512 bytes by zeros, as a lost block of a disk."""
    start = rng.randrange(len(content) + 1)
    length = min(rng.randint(1, 512), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def insert_noise(content: bytes, rng: random.Random) -> bytes:
    """Insert up to 64 random bytes."""
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.randint(1, 64)) + content[start:]


def append(content: bytes, rng: random.Random) -> bytes:
    """Append zeros, noise or the file itself."""
    return content + rng.choice((bytes(rng.randint(1, 2000)), rng.randbytes(rng.randint(1, 200)), content))


def repeat_a_part(content: bytes, rng: random.Random) -> bytes:
    """Write a part twice, as an interrupted copy that was continued at the wrong place."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.randint(1, 300))
    return content[:end] + content[start:end] + content[end:]


def replace_a_number(content: bytes, rng: random.Random) -> bytes:
    """Replace a digit of a text, or four bytes of another file, by an extreme number."""
    digits = [index for index, byte in enumerate(content[:4000]) if 48 <= byte <= 57]
    if digits and rng.random() < 0.7:
        at = rng.choice(digits)
        number = rng.choice(
            (b"-1", b"999999999999", b"1e308", b"nan", b"0", b"0x10", b"9" * 5000, b"\xd9\xa3")
        )
        return content[:at] + number + content[at + 1 :]
    at = rng.randrange(max(1, len(content) - 4))
    number = rng.choice(
        (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\xc0\x7f", b"\0\0\x80\x7f")
    )
    return content[:at] + number + content[at + 4 :]


def swap_structure(content: bytes, rng: random.Random) -> bytes:
    """Exchange a character that structures a text, or the byte order of a part."""
    marks = [index for index, byte in enumerate(content) if byte in b'{}[]",:\t\n']
    if marks:
        at = rng.choice(marks)
        return (
            content[:at]
            + rng.choice((b"", b"{", b"]", b'"', b"\t", b"\n", b",", b"\0", b"\x1b[2J"))
            + content[at + 1 :]
        )
    at = rng.randrange(max(1, len(content) - 8))
    return content[:at] + content[at : at + 8][::-1] + content[at + 8 :]


DAMAGES: tuple[Damage, ...] = (
    flip_bits,
    flip_in_the_header,
    truncate,
    lose_a_part,
    zero_a_block,
    insert_noise,
    append,
    repeat_a_part,
    replace_a_number,
    swap_structure,
)


def damaged(content: bytes, seed: int) -> tuple[bytes, str]:
    """Return damaged bytes and the name of the damage.

    Args:
        content: Bytes of an intact file.
        seed: Seed; the same seed does the same damage to the same bytes.
    """
    rng = random.Random(seed)
    damage = rng.choice(DAMAGES)
    return damage(content, rng), damage.__name__
