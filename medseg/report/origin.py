"""The table of origin of a report: which files were compared, by which settings and versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.inference.cohort.cohort_tables import RUN
from medseg.inference.cohort.written_files import FOLDER
from medseg.runtime.formatting import pluralise
from medseg.runtime.machine import installed_version

_PACKAGES = ("medseg", "numpy", "scipy", "nibabel")


def origin_of_files(files: Mapping[str, str | Path | None], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows for an evaluation of files.

    Args:
        files: Files and folders by their role, such as ``predictions``; None for those that were not given. Only the last two
            parts of their paths are shown. If the predictions are a folder that `medseg predict` wrote, its models are named.
        options: Plain values of the options of the metrics, by name.

    Returns:
        Names and values.
    """
    rows = {name: _short(Path(path)) for name, path in files.items() if path is not None}
    folder = files.get("predictions")
    if folder is not None:
        rows |= models_of_predictions(Path(folder))
    rows |= {name.replace("_", " "): _in_words(value) for name, value in options.items()}
    return (
        rows | {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES}
    )


def models_of_predictions(folder: Path) -> dict[str, str]:
    """Return a row for each model and its settings that predicted label maps of a folder; none if it is not known.

    Args:
        folder: Folder of label maps.

    Returns:
        Names and values, with the hashes of the manifests of the model folders.
    """
    if not (folder / FOLDER).is_dir():
        return {}
    try:
        models = json.loads((folder / RUN).read_text(encoding="utf-8"))["models"]
        found = [(one["model"], one["settings"], int(one["cases"])) for one in models]
    except (OSError, ValueError, KeyError, TypeError):
        return {"model": f"not known, because {RUN} of the predictions cannot be read"}
    return {
        "model" if len(found) == 1 else f"model {number}": f"{model}, {pluralise(cases, 'case')}"
        + (f", settings {settings}" if settings not in ("", "[]") else "")
        for number, (model, settings, cases) in enumerate(found, start=1)
    }


def _short(path: Path) -> str:
    """Return a path without the folders of the machine, which may name persons: at most its last two parts."""
    return path.as_posix() if len(path.parts) <= 2 else "…/" + "/".join(path.parts[-2:])


def _in_words(value: Any) -> str:
    if value is None:
        return "automatic"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
