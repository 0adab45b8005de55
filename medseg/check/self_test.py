"""The self-test of a model: the same image, stored in other ways, must get the same labels at the same places.

An image is copied to all 48 orientations, to another place, and to an oblique position. No voxel is interpolated, so a
model that reads the geometry of its input rightly predicts the same labels. The test finds models, imports and settings
that confuse left and right, axes, or positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from medseg.check.finding import Finding
from medseg.data.datasets.cases import Case, ReadingOptions
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.read_case import read_case_image
from medseg.data.preprocessing.training_data import annotated_volumes, measure_image
from medseg.data.preprocessing.unlike_training import Deviation, image_deviations, volume_deviations
from medseg.errors import collected_warnings
from medseg.runtime.formatting import listed
from medseg.runtime.progress import Progress
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor

TOLERATED_FRACTION = 0.001
"""Fraction of the labelled voxels that may differ, because sums in another order are rounded in another way."""
LARGEST_EDGE = 96
_OBLIQUE_DEGREES = (4.0, -3.0, 5.0)
_SHIFT_MM = (31.3, -57.9, 112.1)
_MOST_LISTED = 6


@dataclass(frozen=True)
class Copy:
    """The same image stored in another way.

    Attributes:
        name: What was changed.
        image: The copy.
        follows_axes: Whether a model that uses the axes of files must give the same labels, too.
    """

    name: str
    image: Volume
    follows_axes: bool


def self_test(
    model: Path, images: Sequence[Path], *, progress: Progress | None = None
) -> tuple[list[Finding], list[str]]:
    """Predict every image in many copies, and compare the labels.

    Args:
        model: Model folder, or a run.
        images: Images, as for a prediction; the central block of large ones is used.
        progress: Called after each prediction with (done, total, name of the copy).

    Returns:
        Findings, and one sentence for each image that passed.

    Raises:
        MedsegError: The model cannot be loaded, or an image cannot be read or predicted.
    """
    with collected_warnings():  # how an image differs from the training images is among the findings
        return _tested(model, images, progress)


def _tested(
    model: Path, images: Sequence[Path], progress: Progress | None
) -> tuple[list[Finding], list[str]]:
    from medseg.inference.predictor import load

    predictor = load(model)
    follows = predictor.saved.preprocessing.orientation is None
    findings: list[Finding] = []
    passed: list[str] = []
    if follows:
        found = "preprocessing.orientation: null"
        findings.append(Finding("MODEL_FOLLOWS_FILE_AXES", str(model), "preprocessing.orientation", found))
    if predictor.saved.training_data is None:
        findings.append(
            Finding(
                "MODEL_WITHOUT_TRAINING_DATA", str(model), "training_data", "no record of the training images"
            )
        )
    reading = ReadingOptions(absent_channels=predictor.saved.absent_channels)
    for case in read_images(list(images), len(predictor.saved.channel_names), reading):
        whole = read_case_image(case)
        image = central_block(whole)
        findings += _unlike_training(predictor, whole, case)
        if min(image.grid.shape) == 1:
            passed.append(
                f"{model}: not tested with {case.id}, because an image of one slice has no other orientations."
            )
            continue
        copies = [copy for copy in copies_of(image) if copy.follows_axes or not follows]
        reference = predictor(image)
        if image.grid.shape == whole.grid.shape:
            findings += _volumes_unlike_training(predictor, reference, case)
        if not reference.data.any():
            findings.append(Finding("MODEL_PREDICTS_BACKGROUND", str(model), case.id, "no labelled voxel"))
            continue
        fractions = differing_fractions(predictor, reference, copies, progress)
        different = {name: one for name, one in fractions.items() if one > TOLERATED_FRACTION}
        if different:
            findings.append(_finding(model, case.id, different))
        else:
            passed.append(
                f"{model}: the self-test with {case.id} passed: {len(copies)} copies in other orientations and places have the "
                f"same labels (at most {max(fractions.values()):.2g} of the labelled voxels differ)."
            )
    return findings, passed


def _unlike_training(predictor: Predictor, image: Volume, case: Case) -> Iterator[Finding]:
    """Yield how an image differs from the training images."""
    saved = predictor.saved
    if saved.training_data is not None:
        measures = measure_image(image, saved.preprocessing)
        for one in image_deviations(measures, saved.training_data, saved.preprocessing, saved.channel_names):
            yield _deviation(one, case)


def _volumes_unlike_training(predictor: Predictor, labels: Volume, case: Case) -> Iterator[Finding]:
    """Yield how the volumes of predicted labels differ from those of the training cases."""
    data = predictor.saved.training_data
    if data is not None:
        found = annotated_volumes(labels.data, labels.grid.voxel_volume, predictor.labels)
        for one in volume_deviations(found, data):
            yield _deviation(one, case)


def _deviation(one: Deviation, case: Case) -> Finding:
    expected = f"{one.expected}, which the model was trained on"
    return Finding("IMAGE_UNLIKE_TRAINING", str(case.images[0]), one.field, one.found, expected, case=case.id)


def central_block(image: Volume) -> Volume:
    """Return the central block of an image, of at most `LARGEST_EDGE` voxels along each axis."""
    shape = [min(n, LARGEST_EDGE) for n in image.grid.shape]
    start = [(n - m) // 2 for n, m in zip(image.grid.shape, shape, strict=True)]
    return image.cropped(start, shape)


def copies_of(image: Volume) -> Iterator[Copy]:
    """Yield the same voxels in the other 47 orientations, at another place, and in an oblique position.

    Args:
        image: Image in any orientation.

    Yields:
        Copies, none of which is interpolated.
    """
    for codes in ("".join(c) for order in permutations(("RL", "AP", "SI")) for c in product(*order)):
        if codes != image.grid.axcodes:
            yield Copy(f"orientation {codes}", image.reoriented(codes), follows_axes=False)
    shifted = image.grid.affine.copy()
    shifted[:3, 3] += _SHIFT_MM
    yield Copy("shifted", _on(image, shifted), follows_axes=True)
    turned = image.grid.affine.copy()
    turned[:3] = Rotation.from_euler("xyz", _OBLIQUE_DEGREES, degrees=True).as_matrix() @ turned[:3]
    oblique = _on(image, turned)
    if oblique.grid.axcodes == image.grid.axcodes:  # else the image is near 45 degrees
        yield Copy("oblique", oblique, follows_axes=True)


def _on(image: Volume, affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Volume:
    return replace(image, grid=Grid(image.grid.shape, affine), header={})


def differing_fractions(
    predict: Callable[[Volume], Volume],
    reference: Volume,
    copies: Sequence[Copy],
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return in how many of the labelled voxels the labels of copies differ from a reference.

    Args:
        predict: Function from an image to its label map on the same grid.
        reference: Label map of the original.
        copies: The copies.
        progress: Called after each prediction with (done, total, name of the copy).

    Returns:
        Fraction of the voxels that have a label in one of both, by name of the copy.
    """
    found: dict[str, float] = {}
    for done, copy in enumerate(copies, start=1):
        labels = predict(copy.image).reoriented(reference.grid.axcodes).data
        labelled = (labels != 0) | (reference.data != 0)
        found[copy.name] = float((labels != reference.data).sum() / max(1, labelled.sum()))
        if progress is not None:
            progress(done, len(copies), copy.name)
    return found


def _finding(model: Path, image: str, different: dict[str, float]) -> Finding:
    worst = sorted(different.items(), key=lambda one: -one[1])
    shown = listed([f"{name} ({fraction:.2%})" for name, fraction in worst], _MOST_LISTED)
    return Finding(
        "MODEL_NOT_INVARIANT",
        str(model),
        f"labels of {image}",
        f"other labels in the copies {shown}",
        f"the same labels in at least {1 - TOLERATED_FRACTION:.1%} of the labelled voxels",
    )
