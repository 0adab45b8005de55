"""The identity of the models and settings that a prediction depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.model_folder.folder import INT8
from medseg.storage.manifest import NAME as MANIFEST


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
        listed = (f"{key}={_setting_text(value)}" for key, value in sorted((settings or {}).items()))
        hashes = map(_int8_hash if (settings or {}).get("precision") == "int8" else model_hash, models)
        return cls(" ".join(hashes), tuple(listed))


def _int8_hash(model: Path) -> str:
    """Return a hash of a model folder with its 8-bit network, which is not part of the model's own identity."""
    return hashlib.sha256(f"{model_hash(model)} {model_hash(model / INT8)}".encode()).hexdigest()


def _setting_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def model_hash(model: Path) -> str:
    """Return a hash of all files of a model folder except its 8-bit network; an empty string if there is none."""
    manifest = model / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
