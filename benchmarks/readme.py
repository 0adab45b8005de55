"""Put measured tables into README.md, between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
PICTURES = README.parent / "benchmarks"  # of plots that README.md shows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine() -> str:
    """The processor that the figures belong to, in words."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = re.findall(r"model name\s*:\s*(.*)", text)[0]
        amx = "with AMX" if "amx_bf16" in text else "without AMX"
    except (OSError, IndexError):
        name, amx = platform.processor() or platform.machine(), ""
    return f"{os.cpu_count()} cores of {name} {amx}".strip()


def put_into_readme(name: str, text: str) -> None:
    """Replace the section called `name` in README.md, and print it."""
    print(text)
    page = README.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"README.md: found no section {name!r}. Add its begin and end marks.")
    README.write_text(pattern.sub(lambda m: m[1] + text + m[2], page), encoding="utf-8")
