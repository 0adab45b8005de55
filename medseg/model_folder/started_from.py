"""The record of the trained weights that a training started from; free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medseg.config import Config
from medseg.runtime.formatting import single_line
from medseg.runtime.text_tables import align_columns

NAME = "started_from.json"
"""Name of the record in a run folder."""

_NOTHING = "-"
_MOST_LEFT = 12  # outputs that are listed one by one


class TransferRow(Config):
    """One row of the table of what was taken.

    Attributes:
        part: ``channel``, ``output``, or ``tensors`` for a part of the network.
        here: Name in the trained model; empty for what is left in the source.
        source: Name in the source, or the number of tensors; empty for what is new.
        result: ``taken`` unchanged, ``adapted`` to other channels, outputs or axes, ``new``, or ``left`` in the source.
        note: How new or adapted weights were computed.
    """

    part: Literal["channel", "output", "tensors"]
    here: str
    source: str
    result: Literal["taken", "adapted", "new", "left"]
    note: str = ""


def _shortened(rows: Sequence[TransferRow]) -> list[TransferRow]:
    """Return the rows for a terminal: many outputs that are left, as those of a published model, become one row."""
    left = [row for row in rows if (row.part, row.result) == ("output", "left")]
    if len(left) <= _MOST_LEFT:
        return list(rows)
    first = left[0].replace(source=f"{left[0].source} and {len(left) - 1} more")
    return [first if row is left[0] else row for row in rows if row is left[0] or row not in left]


class WeightOrigin(Config):
    """Trained weights that a training started from.

    Attributes:
        source: Name of the file, the model folder or the published weights, without its folder.
        sha256: Hash of the file of weights; None for published weights.
        name: Name of the experiment that trained the source; None if it is not known.
        dataset: Dataset that the source was trained on; None if it is not known.
        licence: Licence of the weights; None if it is not known.
    """

    source: str
    sha256: str | None = None
    name: str | None = None
    dataset: str | None = None
    licence: str | None = None

    @property
    def in_words(self) -> str:
        """The source, its experiment, its dataset and the beginning of its hash in one line."""
        known = [self.name, None if self.dataset is None else f"dataset {self.dataset}"]
        known.append(None if self.sha256 is None else f"SHA-256 {self.sha256[:12]}")
        details = ", ".join(single_line(one) for one in known if one)
        return single_line(self.source) + (f" ({details})" if details else "")


class StartedFrom(WeightOrigin):
    """The trained weights that a training started from, and what was taken from them.

    Attributes:
        rows: What was taken, adapted, new and left.
        earlier: The weights that the source itself started from, and so on, the latest first.

    Examples:
        >>> row = TransferRow(part="output", here="liver", source="hepar", result="taken")
        >>> print(StartedFrom(source="first", rows=(row,)))
        weights from first
        part    here   source  result  note
        output  liver  hepar   taken   -
    """

    rows: tuple[TransferRow, ...] = ()
    earlier: tuple[WeightOrigin, ...] = ()

    def __str__(self) -> str:
        header = ("part", "here", "source", "result", "note")
        rows = _shortened(self.rows)
        cells = [tuple(single_line(getattr(row, key)) or _NOTHING for key in header) for row in rows]
        return "\n".join([f"weights from {self.in_words}", *align_columns([header, *cells], "lllll")])

    @property
    def origins(self) -> tuple[WeightOrigin, ...]:
        """The source, and all weights that it goes back to, the latest first."""
        own = {key: getattr(self, key) for key in WeightOrigin.model_fields}
        return (WeightOrigin(**own), *self.earlier)
