"""Run damaged variants of every kind and collect the wrong answers."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import shown_text
from tests.fuzz.damage import damaged
from tests.fuzz.kinds import KINDS, Kind, content
from tests.fuzz.server import Answer, answer


@dataclass(frozen=True)
class Fault:
    """A wrong answer.

    Attributes:
        kind: Kind of the file.
        seed: Seed of the damage.
        damage: Name of the damage.
        found: What is wrong with the answer.
    """

    kind: str
    seed: int
    damage: str
    found: str


@dataclass
class Result:
    """The answers to all variants.

    Attributes:
        answers: Number of answers of each sort.
        faults: The wrong ones.
    """

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)


def run(
    variants: int, folder: Path, first_seed: int = 0, progress: Callable[[int], None] | None = None
) -> Result:
    """Read damaged files, the kinds in turn.

    Args:
        variants: Number of damaged files.
        folder: Empty folder for the files.
        first_seed: Seed of the first variant.
        progress: Called with the number of variants that are done.
    """
    result = Result()
    intact = {kind.name: _built(kind, folder / "intact" / str(number)) for number, kind in enumerate(KINDS)}
    hashes = {kind.name: _expected(kind, intact[kind.name]) for kind in KINDS}
    for number, seed in enumerate(range(first_seed, first_seed + variants)):
        kind = KINDS[seed % len(KINDS)]
        found, damage, covered = _variant(kind, intact[kind.name], seed, folder / "damaged")
        result.answers[found.verdict] += 1
        wrong = _wrong(found, hashes[kind.name], covered=covered)
        if wrong:
            result.faults.append(Fault(kind.name, seed, damage, wrong))
        if progress is not None:
            progress(number + 1)
    return result


def _built(kind: Kind, folder: Path) -> Path:
    folder.mkdir(parents=True)
    return kind.build(folder)


def _expected(kind: Kind, path: Path) -> str:
    """Return the hash of the content of the intact file; the kinds that are no such file must be refused."""
    found = answer(lambda: content(kind.read(path)))
    if found.verdict not in ("read", "refused"):
        raise AssertionError(f"{kind.name}: intact file: {found}")
    for leftover in path.parent.glob("out"):
        shutil.rmtree(leftover)
    return found.text if found.verdict == "read" else ""


def _variant(kind: Kind, intact: Path, seed: int, folder: Path) -> tuple[Answer, str, bool]:
    """Return the answer to a variant, its damage, and whether a checksum covers all damaged bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    root = next(parent for parent in intact.parents if parent.parent.name == "intact")
    shutil.copytree(root, folder)
    path, before = folder / intact.relative_to(root), intact.read_bytes()
    changed, damage = damaged(before, seed)
    path.write_bytes(changed)
    start = kind.covered_from(before)
    covered = start < len(before) and changed[:start] == before[:start]
    return answer(lambda: content(kind.read(path))), damage, covered


def _wrong(found: Answer, expected: str, *, covered: bool) -> str:
    """Return what is wrong with an answer; empty for a right one."""
    if found.verdict not in ("read", "refused"):
        return f"{found.verdict}: {found.text}"
    if found.verdict == "read" and covered and found.text != expected:
        return "silent: other content in spite of a checksum"
    if found.verdict == "refused" and shown_text(found.text) != found.text:
        return f"control characters in the message: {found.text!r}"
    return ""


def lines(result: Result) -> Iterator[str]:
    """Yield a summary and one line per fault."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(result.answers.items()))
    yield f"{sum(result.answers.values())} variants of {len(KINDS)} kinds: {counts}; {len(result.faults)} faults"
    for fault in result.faults:
        last = [line for line in fault.found.splitlines() if line.strip()]
        digest = hashlib.sha256(fault.found.encode()).hexdigest()[:6]
        yield f"{fault.kind}\tseed {fault.seed}\t{fault.damage}\t{last[0][:60]} … {last[-1][:160]}\t{digest}"
