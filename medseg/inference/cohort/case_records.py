"""Provenance of predictions: which model wrote the label maps of a folder, recorded in ``provenance.jsonl``.

One line is appended before a label map is written and another one afterwards, so that files left by a killed program
are recognised as unfinished. The last line about a label map counts. Several processes may write to one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medseg.data.datasets.cases import Case
from medseg.io.files import stem_of
from medseg.io.instance_files import instance_map_path, instance_table_path
from medseg.storage.atomic import write_error
from medseg.storage.file_state import FileState
from medseg.storage.formats import check_format
from medseg.storage.manifest import NAME as MANIFEST

FILE_NAME = "provenance.jsonl"
FORMAT = 1
UNFINISHED = "unfinished"


def probabilities_path(target: Path) -> Path:
    """Return the file for the probabilities that belong to a label map."""
    return target.with_name(f"{stem_of(target)}_probabilities.nii")


def written_files(target: Path, *, instances: bool, probabilities: bool) -> list[Path]:
    """Return the label map and all files that are written with it.

    Args:
        target: The label map.
        instances: Whether ``NAME_instances`` and its table are written, too.
        probabilities: Whether ``NAME_probabilities.nii`` is written, too.

    Returns:
        The files, the label map first.
    """
    files = [target]
    if instances:
        instance_map = instance_map_path(target)
        files += [instance_map, instance_table_path(instance_map)]
    if probabilities:
        files.append(probabilities_path(target))
    return files


def _state(paths: Sequence[Path]) -> FileState | None:
    """Return the state of files; None if one was removed in the meantime."""
    try:
        return FileState.of(paths)
    except OSError:
        return None


@dataclass(frozen=True)
class ModelId:
    """The model and the settings that a prediction depends on.

    Attributes:
        model: Hash of the model folder; of an ensemble, those of all folders, separated by spaces.
        settings: Prediction settings that differ from the stored ones, as ``overlap=0.25``, sorted.

    Examples:
        >>> ModelId.from_folders([], {"overlap": 0.25, "mirror_axes": [0]}).settings
        ('mirror_axes=[0]', 'overlap=0.25')
    """

    model: str
    settings: tuple[str, ...] = ()

    @classmethod
    def from_folders(cls, models: Sequence[Path], settings: Mapping[str, object] | None = None) -> ModelId:
        """Identify a model, or an ensemble of models, and its settings.

        Args:
            models: The model folders.
            settings: Prediction settings that replace the stored ones, as for `medseg.load`.

        Returns:
            The hashes of the models, in the given order, and the settings, sorted by name.
        """
        listed = (f"{key}={_text(value)}" for key, value in sorted((settings or {}).items()))
        return cls(" ".join(map(model_hash, models)), tuple(listed))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def model_hash(model: Path) -> str:
    """Return a hash of all files of a model folder; an empty string if there is none."""
    manifest = model / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""


@dataclass(frozen=True)
class _Record:
    """One line of the file.

    Attributes:
        name: Name of the label map, without suffix.
        model: As in `ModelId`.
        settings: As in `ModelId`.
        instances: Whether instances were written with it.
        probabilities: Whether probabilities were written with it.
        complete: Whether all of its files are written.
        notes: Sentences about a prediction that was not done as planned, such as in another precision.
        images: State of the image files that were predicted.
        files: State of the files that were written.
    """

    name: str
    model: str
    settings: tuple[str, ...] = ()
    instances: bool = False
    probabilities: bool = False
    complete: bool = False
    notes: tuple[str, ...] = ()
    images: FileState | None = None
    files: FileState | None = None


class Provenance:
    """The records of a folder; a line that cannot be read counts as absent.

    Args:
        folder: Folder of label maps.

    Raises:
        DataError: Another version of medseg wrote the records in another format.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        records = filter(None, map(self._parsed, lines))
        self._records = {record.name: record for record in records}

    def _parsed(self, line: str) -> _Record | None:
        """Return the record of a line, or None if it is not one, such as a line that was cut off."""
        try:
            values: dict[str, Any] = json.loads(line)
            version = values.pop("format")
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        check_format(version, FORMAT, self._path, "provenance")
        try:
            values["notes"] = tuple(values.get("notes", ()))
            for key in ("images", "files"):
                values[key] = FileState(**values[key]) if values.get(key) else None
            return _Record(**{**values, "name": str(values["name"]), "settings": tuple(values["settings"])})
        except (TypeError, KeyError):
            return None

    def model_of(self, name: str) -> str | None:
        """Return the hash of the first model that wrote a label map.

        Args:
            name: Name of the label map, without suffix.

        Returns:
            The hash; `UNFINISHED` if writing the label map was interrupted; None if nothing is recorded.
        """
        record = self._records.get(name)
        if record is None or not record.complete:
            return None if record is None else UNFINISHED
        return str(record.model).partition(" ")[0] or None

    def knows(self, name: str) -> bool:
        """Return whether anything is recorded about a label map."""
        return name in self._records

    def is_unfinished(self, name: str) -> bool:
        """Return whether writing a label map began and did not end."""
        return name in self._records and not self._records[name].complete

    def is_unchanged(self, name: str, images: Sequence[Path], files: Sequence[Path]) -> bool:
        """Return whether the files of a label map are those that were written, from the same images.

        Args:
            name: Name of the label map, without suffix.
            images: Image files of the case.
            files: The label map and the files that were written with it.

        Returns:
            False if an image has other content than then, or a written file was changed or cut off.
        """
        record = self._records.get(name)
        if record is None:
            return False
        checks = ((record.images, images), (record.files, files))
        return all(state is None or state.still_holds(paths) for state, paths in checks)

    def is_by(
        self, name: str, model_id: ModelId, *, instances: bool = False, probabilities: bool = False
    ) -> bool:
        """Return whether a model wrote a label map completely.

        Args:
            name: Name of the label map, without suffix.
            model_id: The model and its settings.
            instances: Whether instances must have been written with it.
            probabilities: Whether probabilities must have been written with it.

        Returns:
            True only if the record is complete, names the same models and settings, and covers the required extra
            files.
        """
        record = self._records.get(name)
        if record is None or not record.complete or ModelId(record.model, record.settings) != model_id:
            return False
        return record.instances >= instances and record.probabilities >= probabilities

    @contextlib.contextmanager
    def recording(
        self,
        case: Case,
        target: Path,
        model_id: ModelId,
        *,
        instances: bool = False,
        probabilities: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Iterator[None]:
        """Record the provenance of a label map around its writing, then delete outdated companion files.

        Instances and probabilities of an earlier prediction would otherwise be taken for a part of this one. Files without
        a record are kept, and so is everything if the writing fails.

        Args:
            case: The case that is predicted.
            target: The label map.
            model_id: The model and its settings.
            instances: Whether instances are written with it.
            probabilities: Whether probabilities are written with it.
            notes: Sentences about the prediction, see `Outcome`.

        Raises:
            DataError: The record cannot be written.
            ResourceError: The disk is full.
        """
        name = stem_of(target)
        former = self._records.get(name)
        had_instances = former is not None and former.instances
        had_probabilities = former is not None and former.probabilities
        written = _Record(
            name, model_id.model, model_id.settings, instances, probabilities, complete=True, notes=notes
        )
        self._append(
            replace(
                written,
                instances=instances or had_instances,
                probabilities=probabilities or had_probabilities,
                complete=False,
            )
        )
        try:
            yield
        except Exception:
            if former is not None:
                self._append(former)
            raise
        files = written_files(target, instances=instances, probabilities=probabilities)
        self._append(replace(written, images=_state(case.images), files=_state(files)))
        if had_instances and not instances:
            instance_map = instance_map_path(target)
            instance_map.unlink(missing_ok=True)
            instance_table_path(instance_map).unlink(missing_ok=True)
        if had_probabilities and not probabilities:
            probabilities_path(target).unlink(missing_ok=True)

    def _append(self, record: _Record) -> None:
        line = json.dumps({"format": FORMAT, **asdict(record)}) + "\n"
        try:
            with self._path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line  # the line before was cut off
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from None
        self._records[record.name] = record
