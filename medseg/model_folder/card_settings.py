"""What the authors of a model state in its model card; free of torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medseg.config import Config

Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]+$")]


class CardSettings(Config):
    """Licence, authors and purpose of a model, for the model card in its folder.

    Attributes:
        licence: Licence of the model, if possible as an SPDX identifier such as ``cc-by-4.0``; null if none is stated.
        licence_url: Address of the text of the licence.
        weights_licence: Licence of the weights in `model.weights`, for sources that do not state one.
        dataset_licence: Licence of the training data.
        authors: Names of the authors.
        citation: How to cite the model: a reference or BibTeX.
        intended_use: What the model is for.
        limits: What is known about images for which the model fails, or was not tested.
    """

    licence: Line | None = None
    licence_url: Line | None = None
    weights_licence: Line | None = None
    dataset_licence: Line | None = None
    authors: tuple[Line, ...] = ()
    citation: str | None = Field(None, min_length=1)
    intended_use: str | None = Field(None, min_length=1)
    limits: str | None = Field(None, min_length=1)
