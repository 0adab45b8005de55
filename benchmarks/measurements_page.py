"""Write measured tables into docs/measurements.md, between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "measurements.md"
FIGURES = DOCS / "images"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine() -> str:
    """Return a description of the processor of the measurements."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = re.findall(r"model name\s*:\s*(.*)", text)[0]
        amx = "with AMX" if "amx_bf16" in text else "without AMX"
    except (OSError, IndexError):
        name, amx = platform.processor() or platform.machine(), ""
    return f"{os.cpu_count()} cores of {name} {amx}".strip()


def show_section(name: str, text: str, *, publish: bool) -> None:
    """Print a section and, on request, write it to docs/measurements.md."""
    if publish:
        publish_section(name, text)
    else:
        print(text)


def publish_section(name: str, text: str) -> None:
    """Replace the section called `name` in docs/measurements.md, and print it."""
    print(text)
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(
            f"{PAGE.name}: found no section {name!r}, expected its begin and end marks. Add them."
        )
    PAGE.write_text(pattern.sub(lambda m: m[1] + text + m[2], page), encoding="utf-8")
