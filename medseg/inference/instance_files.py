"""Instances of image files: beside each label map an instance map and a table of classes and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from medseg.data.cases import Case
from medseg.data.preprocess import prepare
from medseg.errors import MedsegError, ModelError, describe
from medseg.inference.many import Noting, Outcome, memory_told, unnoted
from medseg.inference.precision import autocast
from medseg.inference.volume_instances import find_instances, onto_grid, without_covered
from medseg.instances import Instances
from medseg.io import write
from medseg.io.instances import instance_file, write_instances
from medseg.models.multiplane import on_volumes
from medseg.models.slicewise import SliceWise
from medseg.volume import Volume

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor

OnSlice = Callable[[int, int], None]


def require_instance_model(predictor: Predictor) -> None:
    """Raise `ModelError` unless the model finds instances of labels."""
    if predictor.labels.regions:
        fix = "Predict label maps, without instances"
        raise ModelError(
            describe(predictor.saved.name, "predicts regions, which may overlap, not objects", fix=fix)
        )
    if not callable(getattr(predictor.model, "instances", None)):
        member = getattr(predictor.model, "members", [None])[0]
        if callable(getattr(member, "instances", None)):
            fix = "Use one of its members, such as RUN/fold_0 of a cross-validation"
            raise ModelError(describe(f"{predictor.saved.name}: ensemble", "finds no instances", fix=fix))
        fix = (
            "Use a model of mask_rcnn*, maskformer* or mask2former*; or evaluate the parts of its label maps"
        )
        raise ModelError(describe(predictor.saved.model["name"], "finds no instances", fix=fix))


def image_instances(
    predictor: Predictor, volume: Volume, *, where: str = "image", on_slice: OnSlice | None = None
) -> Instances:
    """Find the instances of an image, slice by slice, linked across slices, on the image's own grid.

    The model sees whole slices; windows, mirroring and `slices.planes` are for label maps alone.

    Args:
        predictor: of a 2-D instance model.
        volume: `(C, X, Y, Z)` as read from its file; a picture is one slice.
        where: file or case, for messages.
        on_slice: called with (slices done, slices in all).

    Returns:
        Instances of the volume `(X, Y, Z)` whose score reaches ``predict.instance_score``, without overlap;
        those of which better ones cover more than half are left out.

    Raises:
        ModelError: the model finds no instances. DataError: the image does not fit the model.
    """
    require_instance_model(predictor)
    saved, settings = predictor.saved, predictor.settings
    prepared = prepare(volume, saved.preprocessing, where=where)
    slices = saved.slices.replace(planes=())
    model = on_volumes(predictor.model, slices, axis=saved.slice_axis, preprocessing=saved.preprocessing)
    assert isinstance(model, SliceWise)  # only 2-D models offer instances
    image = prepared.slices if model.axis == 2 else torch.from_numpy(prepared.image.data)
    with torch.inference_mode(), autocast(predictor.network.dtype, predictor.device):
        found = find_instances(model, image, settings.link, device=predictor.device, on_slice=on_slice)
    kept = found.select(np.flatnonzero(found.scores >= settings.instance_score))
    return onto_grid(without_covered(kept), prepared.grid, volume.grid)


def label_map_of(predictor: Predictor, instances: Instances, like: Volume) -> Volume:
    """The label map `(1, X, Y, Z)` that instances stand for, with the labels' values, on the grid of `like`."""
    values = predictor.engine.decision.values[instances.to_label_map()]
    return Volume(values[None], like.grid, "label", like.header)


def predict_instance_files(
    predictor: Predictor,
    pairs: Iterable[tuple[Case, Path]],
    *,
    on_slice: OnSlice | None = None,
    noting: Noting = unnoted,
) -> Iterator[Outcome]:
    """Write, for every image, instance map, table and the label map of the instances' classes, in this order.

    Args:
        predictor: of a 2-D instance model.
        pairs: image and the file of its label map; see `instance_file` for the others.
        on_slice: called with (slices done, slices in all) of each image.
        noting: gives the context that the writing of a case is done in, see `predict_files`.

    Yields:
        An outcome per pair, in order, once its files are written. An image that cannot be used does not stop the others.

    Raises:
        ModelError: the model finds no instances.
    """
    require_instance_model(predictor)
    for case, target in pairs:
        yield _predicted(predictor, case, target, on_slice, noting)


def _predicted(
    predictor: Predictor, case: Case, target: Path, on_slice: OnSlice | None, noting: Noting
) -> Outcome:
    began = time.perf_counter()
    times = [began] * 4
    error: MedsegError | None = None
    try:
        with memory_told(case):
            volume, where = predictor.read(case)
            times[1:] = [time.perf_counter()] * 3
            found = image_instances(predictor, volume, where=where, on_slice=on_slice)
            times[2:] = [time.perf_counter()] * 2
            with noting(target):
                write_instances(found, volume, instance_file(target), predictor.labels)
                write(label_map_of(predictor, found, volume), target)
        times[3] = time.perf_counter()
    except MedsegError as refused:
        error = refused
    reading, network, writing = np.diff(times).tolist()
    return Outcome(case, target, error, reading, network, writing)
