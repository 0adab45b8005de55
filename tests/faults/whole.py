"""What a folder holds: torn files, what was left behind, and results that two runs must share."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from medseg.io.files import read
from medseg.storage.manifest import NAME as MANIFEST
from medseg.storage.manifest import check_manifest
from medseg.storage.torch_files import read_torch_file

_TEMPORARY = ".tmp-"
# What a run measures of itself, and what the disk and the system number.
_MEASURED = {
    *(
        "seconds",
        "seconds_per_step",
        "samples_per_second",
        "data_wait_fraction",
        "overhead",
        "peak_memory",
        "seconds_left",
    ),
    *("peak_memory_bytes", "stamp", "id", "processes"),
}


def _whole_line(path: Path) -> None:
    if not path.read_text(encoding="utf-8").endswith("\n"):
        raise ValueError("the last line has no end")


def _table(path: Path) -> None:
    _whole_line(path)
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of different lengths")


def _page(path: Path) -> None:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("no end of the page")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
    ".safetensors": load_file,
    ".pt": read_torch_file,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
    ".gz": read,
    ".nii": read,
    ".tsv": _table,
    ".html": _page,
    ".md": _whole_line,
    ".claim": lambda path: json.loads(path.read_text(encoding="utf-8")),
}
# What the product reads even if it was cut off: a log that grows line by line, and signs of life.
_MAY_BE_CUT = {".jsonl", ".heartbeat"}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files under their final names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(_TEMPORARY in part for part in path.relative_to(folder).parts):
            yield path


def torn(folder: Path) -> list[str]:
    """Return the files and folders under a final name that are not whole."""
    found = []
    for path in _files(folder):
        try:
            if path.name == MANIFEST:
                check_manifest(path.parent)
            elif path.name == "lock" or path.suffix in _READERS:
                _READERS[".json" if path.name == "lock" else path.suffix](path)
            elif path.suffix not in _MAY_BE_CUT and "tfevents" not in path.name:
                raise ValueError("no check for such a file")
        except Exception as error:
            found.append(f"torn: {path.relative_to(folder)}: {type(error).__name__}: {error}")
    for path in sorted(folder.rglob("step-*")):
        if path.name.startswith("step-") and path.is_dir() and not (path / MANIFEST).is_file():
            found.append(f"torn: {path.relative_to(folder)}: no manifest")
    return found


def left_behind(folder: Path) -> list[str]:
    """Return temporary files, locks and claims of a folder in which no command runs."""
    return [
        f"left behind: {path.relative_to(folder)}"
        for path in sorted(folder.rglob("*"))
        if _TEMPORARY in path.name or path.name == "lock" or path.parent.name == "claims"
    ]


def results(folder: Path) -> dict[str, str]:
    """Return a hash of the content of each file, without what a run measures of itself.

    Args:
        folder: The folder.
    """
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(_content(path)).hexdigest()[:16]
        for path in _files(folder)
        if not _is_about_the_run(path)
    }


def _is_about_the_run(path: Path) -> bool:
    """Return whether a file only holds times, or hashes that depend on them."""
    of_checkpoint = path.name == MANIFEST and path.parent.name.startswith("step-")
    return (
        of_checkpoint
        or "tfevents" in path.name
        or path.name == "contents.json"
        or path.parent.name == "processes"
    )


def _content(path: Path) -> bytes:
    if path.suffix == ".jsonl":
        return _plain([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text()))
    if path.name == "state.pt":
        return _plain(read_torch_file(path))
    if path.name == "cases.tsv":
        return _plain(list(csv.DictReader(path.read_text().splitlines(), delimiter="\t")))
    return path.read_bytes()


def _plain(value: Any) -> bytes:
    """Return the bytes of nested values, in which tensors count with all their digits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype).encode() + value.contiguous().cpu().numpy().tobytes()
    if isinstance(value, dict):
        kept = [(key, one) for key, one in value.items() if key not in _MEASURED]
        return b"{" + b",".join(str(key).encode() + b":" + _plain(one) for key, one in kept) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_plain, value)) + b"]"
    return repr(value).encode()


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return one sentence per file that is missing, unexpected or different."""
    return [
        f"differs: {name}: found {found.get(name)}, expected {expected.get(name)}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
