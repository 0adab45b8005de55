"""The cases of a report from files: prediction, reference and image of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import image_files
from medseg.data.datasets.names import CHANNEL_FILE
from medseg.data.datasets.read_case import read_case_image
from medseg.evaluation.label_maps.pairs import Pair
from medseg.io.files import stem_of
from medseg.labels.label_table import Labels
from medseg.report.report_case import ReportCase
from medseg.viz.viewer.viewer_case import REFERENCE, ViewerCase


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


def images_of_folder(path: str | Path) -> dict[str, Case]:
    """Return the images of a folder by case id; files named ``<id>_0000``, ``<id>_0001`` … are the channels of one image.

    Args:
        path: A file or folder.

    Returns:
        A case per image, without a label map.

    Raises:
        DataError: There is no image.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(image_files(Path(path))):
        match = CHANNEL_FILE.fullmatch(stem_of(file))
        found[match["id"] if match else stem_of(file)].append(file)
    return {name: Case(name, tuple(files)) for name, files in found.items()}


def _opened(pair: Pair, image: Case, labels: Labels | None) -> ViewerCase:
    prediction, reference = pair.volumes()
    maps = {"prediction": prediction, REFERENCE: reference}
    return ViewerCase(pair.case, read_case_image(image), maps, labels=labels)
