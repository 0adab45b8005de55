"""The first weights of a training: fresh, published, or those of a trained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.fine_tuning.match_weights import take_weights
from medseg.fine_tuning.network_ends import Build, Ends
from medseg.fine_tuning.settings import AdaptSettings
from medseg.fine_tuning.weight_source import WeightSource, read_source
from medseg.model_folder.started_from import StartedFrom, TransferRow
from medseg.models.base import LoadedWeights, Model


@dataclass(frozen=True)
class StartedModel:
    """A model with its first weights.

    Attributes:
        model: The model.
        record: Where the weights come from; None for fresh ones.
        source: The trained model that they come from; None for fresh and for published ones.
    """

    model: Model
    record: StartedFrom | None = None
    source: WeightSource | None = None


def start_from(
    model: Model, build: Build, ends: Ends, path: Path, adapt: AdaptSettings, shown_name: str | None = None
) -> StartedModel:
    """Copy the weights of a trained model into a network.

    Args:
        model: Network with fresh weights; changed in place.
        build: Function that builds the same network for other numbers of channels and outputs.
        ends: Names of its channels and outputs.
        path: Model folder, run, model of a model zoo, or file of weights.
        adapt: How the weights are adapted.
        shown_name: Name of the source without private folders; None for that of the folder or file.

    Returns:
        The network with the record of what was taken.

    Raises:
        ConfigError: A setting in `adapt` does not fit.
        ModelError: The source cannot be read, or its weights do not fit the network.
    """
    source = read_source(path, model, adapt)
    rows = take_weights(model, build, ends, source.weights, adapt)
    published = source.published
    if published is not None:
        rows += tuple(_left_row(name, why) for name, why in published.left.items())
    saved = source.saved
    record = StartedFrom(
        source=shown_name or source.path.name,
        sha256=source.sha256(),
        name=None if saved is None else saved.name,
        dataset=None
        if saved is None or "dataset" not in saved.trained_on
        else str(saved.trained_on["dataset"]),
        licence=None if saved is None else saved.card.licence,
        rows=rows,
        earlier=() if saved is None or saved.started_from is None else saved.started_from.origins,
    )
    return StartedModel(model, record, source if published is None else None)


def published_record(loaded: LoadedWeights, shown_name: str) -> StartedFrom:
    """Return the record of published weights.

    Args:
        loaded: What was loaded.
        shown_name: Name of the source without private folders.

    Returns:
        The record, with one row per part of the network and result.
    """
    whole = tuple(name for name in loaded.loaded if name not in loaded.adapted)
    rows = [
        *_rows(whole, "taken", ""),
        *_rows(loaded.adapted, "adapted", "other channels or image size"),
        *_rows(loaded.fresh, "new", "fresh"),
        *_rows(loaded.unused, "left", ""),
    ]
    return StartedFrom(source=shown_name, rows=tuple(rows))


def _left_row(name: str, why: str) -> TransferRow:
    return TransferRow.parse({"part": "tensors", "here": "", "source": name, "result": "left", "note": why})


def _rows(names: Sequence[str], result: str, note: str) -> list[TransferRow]:
    counts = Counter(name.partition(".")[0] for name in names)
    rows = []
    for part, count in counts.items():
        here, there = f"{part} ({count})", f"{part} ({count})"
        place = {"here": "" if result == "left" else here, "source": there if result == "left" else ""}
        rows.append(TransferRow.parse({"part": "tensors", **place, "result": result, "note": note}))
    return rows
