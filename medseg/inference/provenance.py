"""Which model made the label maps of a folder, noted in ``provenance.jsonl`` beside them.

A line is appended before a label map is written and another one behind it, so that what a killed program left is never
taken for what it was about to make. The last line of a label map counts. Several processes may write to one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.errors import DataError
from medseg.io.files import stem_of
from medseg.io.instance_files import instance_map_path, instance_table_path
from medseg.storage.manifest import NAME as MANIFEST

FILE_NAME = "provenance.jsonl"
UNFINISHED = "unfinished"


def probabilities_path(target: Path) -> Path:
    """Where the probabilities that belong to a label map are written."""
    return target.with_name(f"{stem_of(target)}_probabilities.nii")


@dataclass(frozen=True)
class ModelId:
    """What makes a label map.

    Attributes:
        model: mark of the model folder, or of several, see `mark_of`.
        settings: changes of the stored settings, as ``overlap=0.25``.
    """

    model: str
    settings: tuple[str, ...] = ()

    @classmethod
    def from_folders(cls, models: Sequence[Path], settings: Sequence[str] = ()) -> ModelId:
        """Of the mean of some model folders."""
        return cls(" ".join(map(model_hash, models)), tuple(settings))


def model_hash(model: Path) -> str:
    """A hash over the hashes of all files of a model folder; empty where there is none."""
    manifest = model / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""


@dataclass(frozen=True)
class _Record:
    """A line.

    Attributes:
        name: of the label map, without suffix. model, settings: as of a `Maker`.
        instances, probabilities: whether such files belong to it. whole: whether all of them are written.
    """

    name: str
    model: str
    settings: tuple[str, ...] = ()
    instances: bool = False
    probabilities: bool = False
    whole: bool = False

    @classmethod
    def read(cls, line: str) -> _Record | None:
        """None for what is no note, such as a line that was cut off."""
        try:
            note = json.loads(line)
            return cls(**{**note, "name": str(note["name"]), "settings": tuple(note["settings"])})
        except (ValueError, TypeError, KeyError):
            return None


class Provenance:
    """The notes of a folder; what cannot be read counts as not noted.

    Args:
        folder: of label maps.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        notes = filter(None, map(_Record.read, lines))
        self._notes = {note.name: note for note in notes}

    def model_of(self, name: str) -> str | None:
        """Mark of the first model that made a label map; `UNFINISHED` where its writing was, None if it is not noted."""
        note = self._notes.get(name)
        if note is None or not note.whole:
            return None if note is None else UNFINISHED
        return str(note.model).partition(" ")[0] or None

    def knows(self, name: str) -> bool:
        """Whether it is noted what made a label map."""
        return name in self._notes

    def is_unfinished(self, name: str) -> bool:
        """Whether the writing of a label map began and did not end."""
        return name in self._notes and not self._notes[name].whole

    def is_by(
        self, name: str, model_id: ModelId, *, instances: bool = False, probabilities: bool = False
    ) -> bool:
        """Whether a label map was made so, and with instances or probabilities where these are wanted."""
        note = self._notes.get(name)
        if (
            note is None
            or not note.whole
            or (note.model, note.settings) != (model_id.model, model_id.settings)
        ):
            return False
        return note.instances >= instances and note.probabilities >= probabilities

    @contextlib.contextmanager
    def recording(
        self, target: Path, model_id: ModelId, *, instances: bool = False, probabilities: bool = False
    ) -> Iterator[None]:
        """Around the writing of a label map: note what makes it, and then remove what its predecessor had beside it.

        Instances and probabilities of an earlier prediction would else be taken for a part of this one. Files that
        were not noted are left alone, and so is all that was there if the writing fails.

        Args:
            target: the label map. maker: what makes it.
            instances, probabilities: what is written with it.

        Raises:
            DataError: the note cannot be written.
        """
        name = stem_of(target)
        former = self._notes.get(name)
        had_instances = former is not None and former.instances
        had_probabilities = former is not None and former.probabilities
        begun = _Record(
            name,
            model_id.model,
            model_id.settings,
            instances or had_instances,
            probabilities or had_probabilities,
        )
        self._append(begun)
        try:
            yield
        except Exception:
            if former is not None:
                self._append(former)
            raise
        self._append(_Record(name, model_id.model, model_id.settings, instances, probabilities, whole=True))
        objects = instance_map_path(target)
        if had_instances and not instances:
            objects.unlink(missing_ok=True)
            instance_table_path(objects).unlink(missing_ok=True)
        if had_probabilities and not probabilities:
            probabilities_path(target).unlink(missing_ok=True)

    def _append(self, note: _Record) -> None:
        line = json.dumps(asdict(note)) + "\n"
        try:
            with self._path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line  # a line before it was cut off
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror or error}). Free space, or choose another folder."
            ) from None
        self._notes[note.name] = note
