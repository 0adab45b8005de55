"""The cases of a report from files: prediction, reference and image of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import image_files
from medseg.data.datasets.names import CHANNEL_FILE
from medseg.data.datasets.read_case import read_case_image
from medseg.errors import DataError
from medseg.evaluation.instances.metrics import paired_instances
from medseg.evaluation.instances.pairs import InstancePair, read_instance_pair
from medseg.evaluation.label_maps.pairs import Pair
from medseg.io.files import stem_of
from medseg.labels.label_table import Labels
from medseg.report.report_case import ReportCase
from medseg.viz.viewer.viewer_case import AGREEMENT, REFERENCE, ViewerCase
from medseg.volumes.volume import Volume

_PAIRED, _FALSE_POSITIVE, _MISSED = 1, 2, 3
_MATCHES = Labels.from_names(
    {"paired": _PAIRED, "false positive": _FALSE_POSITIVE, "missed": _MISSED},
    {
        "paired": AGREEMENT[_PAIRED][1],
        "false positive": AGREEMENT[_FALSE_POSITIVE][1],
        "missed": AGREEMENT[_MISSED][1],
    },
)


def cases_of_pairs(
    pairs: Sequence[Pair], images: Mapping[str, Case], labels: Labels | None
) -> list[ReportCase]:
    """Return the cases of a report for evaluated pairs.

    Args:
        pairs: Predictions and references.
        images: A case with the image by case id; pairs without one have no viewer.
        labels: Names and colours of the values; None names them by their values.

    Returns:
        One case per pair, in the same order. Nothing is read yet.
    """
    return [
        ReportCase(
            pair.case, partial(_opened, pair, images[pair.case], labels) if pair.case in images else None
        )
        for pair in pairs
    ]


def cases_of_instance_pairs(
    pairs: Sequence[InstancePair], images: Mapping[str, Case], labels: Labels | None, matching_iou: float
) -> list[ReportCase]:
    """Return the cases of a report for evaluated pairs of instances.

    Args:
        pairs: Predictions and references.
        images: A case with the image by case id; pairs without one have no viewer.
        labels: Names of the classes; None names them by their values.
        matching_iou: IoU above which a prediction and a reference are a pair.

    Returns:
        One case per pair, in the same order, whose viewer shows which instances are in a pair. Nothing is read yet.
    """
    return [
        ReportCase(
            pair.case,
            partial(_opened_instances, pair, images[pair.case], labels, matching_iou)
            if pair.case in images
            else None,
        )
        for pair in pairs
    ]


def images_of_folder(path: str | Path) -> dict[str, Case]:
    """Return the images of a folder by case id; files named ``<id>_0000``, ``<id>_0001`` … are the channels of one image.

    Args:
        path: A file or folder.

    Returns:
        A case per image, without a label map.

    Raises:
        DataError: There is no image, or two files are the same channel of an image.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in sorted(image_files(Path(path))):
        match = CHANNEL_FILE.fullmatch(stem_of(file))
        name, channel = (match["id"], match["channel"]) if match else (stem_of(file), "")
        others = images[name]
        if channel in others or (others and "" in (channel, *others)):
            raise DataError(
                f"{path}: images: found {next(iter(others.values())).name} and {file.name} for case {name!r}, expected one file, "
                "or one per channel. Move one of them to another folder."
            )
        others[channel] = file
    return {name: Case(name, tuple(channels.values())) for name, channels in images.items()}


def _opened(pair: Pair, image: Case, labels: Labels | None) -> ViewerCase:
    prediction, reference = pair.volumes()
    maps = {"prediction": prediction, REFERENCE: reference}
    return ViewerCase(pair.case, read_case_image(image), maps, labels=labels)


def _opened_instances(
    pair: InstancePair, image: Case, labels: Labels | None, matching_iou: float
) -> ViewerCase:
    prediction, reference, volume = read_instance_pair(pair, labels)
    opened = read_case_image(image)
    grid = opened.grid if volume is None else volume.grid
    matched = [np.zeros(len(prediction), bool), np.zeros(len(reference), bool)]
    for index in np.unique([*prediction.classes, *reference.classes]):
        sides = prediction.classes == index, reference.classes == index
        found = paired_instances(prediction.select(sides[0]), reference.select(sides[1]), matching_iou)
        for flags, side, own in zip(matched, sides, found, strict=True):
            flags[side] = own
    maps = {
        "predictions": prediction.painted(np.where(matched[0], _PAIRED, _FALSE_POSITIVE)),
        "references": reference.painted(np.where(matched[1], _PAIRED, _MISSED)),
    }
    shown = {name: Volume(values[None].astype(np.uint8), grid, "label") for name, values in maps.items()}
    return ViewerCase(pair.case, opened, shown, labels=_MATCHES)
