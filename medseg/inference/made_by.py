"""Which model made the label maps of a folder, noted in ``made_by.json`` beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.io.atomic import write_text
from medseg.io.manifest import NAME as MANIFEST

FILE_NAME = "made_by.json"


@dataclass(frozen=True)
class Maker:
    """What makes a label map.

    Attributes:
        model: mark of the model folder, or of several, see `mark_of`.
        settings: changes of the stored settings, as ``overlap=0.25``.
    """

    model: str
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: Sequence[Path], settings: Sequence[str] = ()) -> Maker:
        """Of the mean of some model folders."""
        return cls(" ".join(map(mark_of, models)), tuple(settings))


def mark_of(model: Path) -> str:
    """A hash over the hashes of all files of a model folder; empty where there is none."""
    manifest = model / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""


class MadeBy:
    """The notes of a folder; what cannot be read counts as not noted.

    Args:
        folder: of label maps.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        try:
            notes = json.loads(self._path.read_text(encoding="utf-8"))
            self._notes: dict[str, dict[str, Any]] = {str(name): dict(note) for name, note in notes.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._notes = {}

    def model_of(self, name: str) -> str | None:
        """Mark of the first model that made a label map, None where it is not noted."""
        model = self._notes.get(name, {}).get("model")
        return str(model).partition(" ")[0] if model else None

    def knows(self, name: str) -> bool:
        """Whether it is noted what made a label map."""
        return name in self._notes

    def is_by(self, name: str, maker: Maker, *, instances: bool = False) -> bool:
        """Whether a label map was made so, and with instances where these are wanted."""
        note = self._notes.get(name, {})
        same = note.get("model") == maker.model and note.get("settings", []) == list(maker.settings)
        return same and note.get("instances", False) >= instances

    def add(self, name: str, maker: Maker, *, instances: bool = False) -> None:
        """Note what made a label map.

        Raises:
            DataError: the file cannot be written.
        """
        self._notes[name] = {**asdict(maker), "settings": list(maker.settings), "instances": instances}
        write_text(self._path, json.dumps(self._notes, indent=1, sort_keys=True) + "\n")
