"""Damaged files are read as a correct file or refused with a message; no traceback, no hang, no silent difference."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from medseg.errors import DataError
from tests.fuzz.damage import DAMAGES, damaged
from tests.fuzz.kinds import KINDS
from tests.fuzz.run import lines, run
from tests.fuzz.server import answer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the limits of a child process are those of Linux"),
    pytest.mark.slow,
]
VARIANTS = 200


def test_damaged_files_are_read_correctly_or_refused(tmp_path: Path) -> None:
    result = run(VARIANTS, tmp_path)
    assert sum(result.answers.values()) == VARIANTS
    assert result.faults == [], "\n".join(lines(result))
    assert min(result.answers["read"], result.answers["refused"]) > VARIANTS // 20


def test_kinds_have_their_own_names() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 43


def test_damage_is_repeatable_and_of_every_sort() -> None:
    content = bytes(range(256)) * 8
    assert damaged(content, 3) == damaged(content, 3)
    found = {damaged(content, seed)[1] for seed in range(200)}
    assert found == {damage.__name__ for damage in DAMAGES}
    assert damaged(b"", 1)[0] is not None


def _refuse() -> bytes:
    raise DataError("a.nii: found no voxels.")


def _fail() -> bytes:
    raise KeyError("header")


def _fill_memory() -> bytes:
    return bytes(3 << 30)


def _die() -> bytes:
    import os

    os.abort()


@pytest.mark.parametrize(
    ("read", "verdict", "text"),
    [
        (lambda: b"abc", "read", "ba7816bf"),
        (_refuse, "refused", "a.nii: found no voxels."),
        (_fail, "traceback", "KeyError: 'header'"),
        (_fill_memory, "memory", ""),
        (_die, "died", "exit status -6"),
    ],
)
def test_every_outcome_is_recognised(read: object, verdict: str, text: str) -> None:
    found = answer(read)  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert text in found.text


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.server.SECONDS", 0.5)
    assert answer(lambda: time.sleep(60) or b"").verdict == "slow"
