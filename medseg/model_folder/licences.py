"""The licences that a model depends on: its own, that of its training data, and those of the weights that it started from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

from medseg.errors import LicenceNotice, warn_once
from medseg.model_folder.settings import SavedModel
from medseg.runtime.formatting import single_line
from medseg.storage.json_files import read_object

_NON_COMMERCIAL = re.compile(
    r"(?<![a-z])nc(?![a-z])|non[\s_-]?commercial|(research|academic)[\s_-](use[\s_-])?only", re.IGNORECASE
)


@dataclass(frozen=True)
class Licence:
    """A licence and what it covers.

    Attributes:
        of: What it covers, such as "the model".
        name: Name of the licence.
    """

    of: str
    name: str


def licences_of(saved: SavedModel) -> list[Licence]:
    """Return the licences that are known, that of the model first, then those of its data and weights.

    Args:
        saved: Settings of the model.

    Returns:
        The licences.
    """
    card, started = saved.card, saved.started_from
    known = [("the model", card.licence), ("its training data", card.dataset_licence)]
    for origin in () if started is None else started.origins:
        known.append((f"weights that it started from: {origin.source}", origin.licence))
    return [Licence(of, name) for of, name in known if name is not None]


def is_non_commercial(name: str) -> bool:
    """Return whether the name of a licence says that it excludes commercial use.

    Args:
        name: Name of the licence.

    Returns:
        True for names such as CC BY-NC.

    Examples:
        >>> [is_non_commercial(name) for name in ("cc-by-nc-sa-4.0", "Non-commercial use", "cc-by-4.0", "NCSA")]
        [True, True, False, False]
    """
    return bool(_NON_COMMERCIAL.search(name))


def state_licences(saved: SavedModel, where: str | Path) -> None:
    """State once if a licence that the model depends on excludes commercial use.

    The processes that a prediction starts leave this to the one that started them.

    Args:
        saved: Settings of the model.
        where: The model folder.
    """
    found = [one for one in licences_of(saved) if is_non_commercial(one.name)]
    if found and parent_process() is None:
        shown = "; ".join(f"{one.name} ({one.of})" for one in found)
        warn_once(
            f"{where}: licence: found {shown}, which excludes commercial use. Use the model and its predictions for other purposes "
            "only.",
            LicenceNotice,
        )


def licence_in(path: Path) -> str | None:
    """Return the licence that a ``dataset.json`` of nnU-Net or of the Medical Segmentation Decathlon states.

    Args:
        path: The file.

    Returns:
        Its entry ``licence`` or ``license`` on one line; None if there is no such file or entry.
    """
    if not path.is_file():
        return None
    values = read_object(path)
    found = values.get("licence", values.get("license"))
    return single_line(found) or None if isinstance(found, str) else None
