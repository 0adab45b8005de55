"""Whole models of the model zoos as sources of weights, with the settings that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.data.settings import ChannelIntensities, Method
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import ConfigError
from medseg.fine_tuning.match_weights import TrainedWeights
from medseg.fine_tuning.network_ends import Ends, end_axes
from medseg.fine_tuning.settings import AdaptSettings
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import network_builder
from medseg.model_folder.settings import SavedModel
from medseg.models.pretrained.config import COLOURS
from medseg.models.pretrained.zoos.class_names import BACKGROUND
from medseg.models.pretrained.zoos.published_model import PixelStatistics, PublishedModel
from medseg.models.pretrained.zoos.read_published import read_published

WINDOW = 512
"""Largest patch in pixels that is planned for a published model."""


@dataclass(frozen=True)
class PublishedSource:
    """A published model as a source of weights.

    Attributes:
        published: The model.
        weights: Its weights, with the names of its channels and outputs.
        saved: Settings of a model folder with it.
        labels: Its classes; numbered where their names are not known.
    """

    published: PublishedModel
    weights: TrainedWeights
    saved: SavedModel
    labels: Labels


def read_published_source(path: Path, adapt: AdaptSettings | None = None) -> PublishedSource:
    """Read a published model.

    Args:
        path: File or folder; see `read_published`.
        adapt: Names of the outputs, for a file that does not name them; None for none.

    Returns:
        The source.

    Raises:
        ModelError: The file is damaged, holds code, or is none of a model that medseg offers.
    """
    published = read_published(path)
    outputs = published.classes or (adapt.source_labels if adapt is not None else None)
    saved = SavedModel(
        medseg=version("medseg"),
        name=f"{published.model} of {published.zoo}",
        model={"name": published.model, **published.options, **published.advice},
        channel_names=COLOURS,
        preprocessing=Preprocessing(
            orientation="RAS",
            spacing=None,
            crop_to_nonzero=False,
            channels=tuple(
                Normalization(method="ct", mean=found.mean, std=found.std)
                for found in channel_intensities(published.statistics).values()
            ),
        ),
        window=(WINDOW, WINDOW, 1),
        slices=SliceSettings(radiological_view=True),  # upright, as the images that it was trained on
    )
    count = len(outputs) if outputs else 2
    axes = end_axes(network_builder(saved), len(COLOURS), count)
    weights = TrainedWeights(
        where=path,
        tensors=published.tensors,
        ends=Ends(COLOURS, outputs),
        dims=2,
        heads=frozenset(name for name, ends in axes.items() if any(end.kind == "output" for end in ends)),
        has_background=published.has_background,
        new_channel_factor=published.statistics.unit_variance_factor,
    )
    return PublishedSource(published, weights, saved, _labels(outputs or (), published.has_background))


def channel_intensities(statistics: PixelStatistics) -> dict[str, ChannelIntensities]:
    """Return the normalisation of red, green and blue in the form of ``preprocess.intensities``.

    Args:
        statistics: Mean and standard deviation of the three.

    Returns:
        The numbers by the name of the channel.
    """
    return {
        name: ChannelIntensities(mean=mean, std=std)
        for name, mean, std in zip(COLOURS, statistics.mean, statistics.std, strict=True)
    }


def as_published(
    path: Path,
    wanted: str | Sequence[str],
    methods: Sequence[Method | Literal["hounsfield"]],
    given: Mapping[str, ChannelIntensities],
    channel_names: Sequence[str],
) -> tuple[tuple[Method | Literal["hounsfield"], ...], dict[str, ChannelIntensities]]:
    """Return the normalisation of a dataset with that of red, green and blue as the weights of a published model expect it.

    Args:
        path: File or folder of the published model; see `read_published`.
        wanted: ``preprocess.normalize``.
        methods: One method per channel, with ``auto`` resolved.
        given: ``preprocess.intensities``.
        channel_names: Names of the dataset's channels.

    Returns:
        The methods, and the statistics by the name of the channel.

    Raises:
        ConfigError: A colour is to be normalised otherwise.
        ModelError: The file is damaged, holds code, or is none of a model that medseg offers.
    """
    found, statistics = list(methods), dict(given)
    for name, expected in channel_intensities(read_published(path).statistics).items():
        if name not in channel_names:
            continue
        channel = list(channel_names).index(name)
        if (wanted if isinstance(wanted, str) else wanted[channel]) == "auto":
            found[channel] = "ct"
        own = statistics.setdefault(name, expected)
        if found[channel] != "ct" or own != expected:
            shown = found[channel] if found[channel] != "ct" else _shown(own)
            raise ConfigError(
                f"preprocess.normalize: found {shown} for {name}, expected {_shown(expected)}, which the weights in {path} have "
                "learned to read. Set preprocess.normalize to auto, and remove preprocess.intensities."
            )
    return tuple(found), statistics


def _shown(statistics: ChannelIntensities) -> str:
    return f"ct with mean {statistics.mean:g} and std {statistics.std:g}"


def _labels(outputs: tuple[str, ...], has_background: bool) -> Labels:
    foreground = outputs[1:] if has_background else outputs
    values = {name: number for number, name in enumerate(foreground, start=1) if name != BACKGROUND}
    return Labels.from_names({BACKGROUND: 0, **values})
