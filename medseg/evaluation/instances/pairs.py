"""Comparison of predicted with reference instances, from files, volumes or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.data.datasets.cases import UNDECIDED, ReadingOptions
from medseg.data.datasets.names import subjects_by_name
from medseg.data.datasets.read_case import read_repaired_labels
from medseg.errors import DataError
from medseg.evaluation.instances.instance_options import (
    DEFAULT_INSTANCE_OPTIONS,
    MATCHED_ABOVE,
    InstanceOptions,
)
from medseg.evaluation.instances.metrics import match_instances
from medseg.evaluation.instances.table import InstanceRow, InstanceTable
from medseg.evaluation.label_maps.metrics import aligned_to, label_values
from medseg.evaluation.label_maps.pairs import pair_files
from medseg.io.companions.instance_files import InstanceFile, instance_map_path, read_instances
from medseg.io.files import stem_of
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume

Source = Instances | Volume | str | Path
ComponentsOf = Literal["neither", "predictions", "both"]
ONE_CLASS = Labels.from_names({"instance": 1})


@dataclass(frozen=True)
class InstancePair:
    """A prediction and its reference.

    Attributes:
        case: Id of the case.
        prediction: Instances, a volume or a file.
        reference: Instances, a volume, a file, or a function that returns the contents of a file.
        components_of: Which of the two are label maps whose connected components are the instances, instead of
            instance maps.
        reading: What the user decided about files whose headers are wrong.

    >>> from pathlib import Path
    >>> InstancePair("nuclei_7", Path("predictions/nuclei_7.png"), Path("labels/nuclei_7.png")).components_of
    'neither'
    """

    case: str
    prediction: Instances | Volume | Path
    reference: Instances | Volume | Path | Callable[[], InstanceFile]
    components_of: ComponentsOf = "neither"
    reading: ReadingOptions = UNDECIDED


def evaluate_instances(
    prediction: Source,
    reference: Source,
    labels: Labels | None = None,
    *,
    components_of: ComponentsOf = "neither",
    detection_iou: float = 0.0,
    matching_iou: float = MATCHED_ABOVE,
    size_bounds_mm3: Sequence[float] = (),
    orientation_from: OrientationFrom | None = None,
    trust_label_array: bool = False,
) -> InstanceTable:
    """Compare instances with their references: average precision, panoptic quality, F1, lesion-wise detection.

    Args:
        prediction: Instances, a volume of instance ids, a file of ids (a table with the same name may give classes and
            scores, see `medseg.io.companions.instance_files`), or a folder of such files.
        reference: As `prediction`; folders are matched by file name.
        labels: Names of the classes; None names them by their values.
        components_of: ``"predictions"`` or ``"both"`` if these are label maps whose connected components are the
            instances.
        detection_iou: IoU from which a reference counts as detected; 0 for any shared voxel.
        matching_iou: IoU above which a prediction and a reference are a pair, see `InstanceOptions`.
        size_bounds_mm3: Volumes in mm³ between classes of size for which detection is counted separately.
        orientation_from: Description of the geometry to use where a NIfTI header leaves it open; see `medseg.read`.
        trust_label_array: Whether maps with as many voxels as their reference, but another grid in their header, are
            compared voxel by voxel as they are stored.

    Returns:
        One row per case and class.

    Raises:
        DataError: Files are missing, are not maps, do not share a grid, or have an unknown class.
        ConfigError: An IoU is not in its range, or the bounds are not ascending.

    >>> import numpy as np
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> evaluate_instances(lesions, lesions).mean()["pq"]
    1.0
    """
    reading = ReadingOptions(orientation_from, trust_label_array)
    pairs = [replace(one, reading=reading) for one in instance_pairs(prediction, reference, components_of)]
    options = InstanceOptions(detection_iou, matching_iou, tuple(size_bounds_mm3))
    rows = [row for case in evaluate_instance_cases(pairs, labels, options) for row in case]
    return InstanceTable(tuple(rows), options, subjects_by_name(pair.case for pair in pairs))


def evaluate_instance_cases(
    pairs: Iterable[InstancePair],
    labels: Labels | None = None,
    options: InstanceOptions = DEFAULT_INSTANCE_OPTIONS,
) -> Iterator[list[InstanceRow]]:
    """Yield the rows of each case, reading files only when their case is reached.

    Args:
        pairs: Predictions and references, for example from `instance_pairs`.
        labels: Names of the classes; None names them by their values.
        options: How instances are matched, and by which sizes they are counted.

    Yields:
        The rows of one case.

    Raises:
        DataError: As in `evaluate_instances`, raised at the faulty case.

    >>> import numpy as np
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> ((row,),) = evaluate_instance_cases([InstancePair("a", lesions, lesions)])
    >>> row.metrics.references
    2
    """
    for pair in pairs:
        prediction, reference, table, volume = _read_pair(pair, labels)
        voxel_mm3 = 1.0 if volume is None else volume.grid.voxel_volume
        rows = []
        for index, label in enumerate(table.foreground, start=1):
            evidence = match_instances(
                prediction.select(prediction.classes == index),
                reference.select(reference.classes == index),
                options,
                voxel_mm3=voxel_mm3,
            )
            rows.append(InstanceRow(pair.case, label.value, label.name, evidence, evidence.metrics()))
        yield rows


def instance_pairs(
    prediction: Source, reference: Source, components_of: ComponentsOf = "neither"
) -> list[InstancePair]:
    """Match predictions and references as `evaluate_instances` does.

    If an instance map ``ID_instances.nii.gz`` exists next to a predicted label map ``ID.nii.gz``, it is used instead.

    Args:
        prediction: Instances, a volume, a file or a folder.
        reference: As `prediction`.
        components_of: See `InstancePair`.

    Returns:
        One pair per case.

    Raises:
        DataError: A path is missing, the folders do not match, or a folder is paired with something in memory.

    >>> import numpy as np
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> len(instance_pairs(lesions, lesions))
    1
    """
    if isinstance(prediction, (str, Path)) and isinstance(reference, (str, Path)):
        return [
            InstancePair(
                one.case, _instances_next_to(one.prediction, components_of), one.reference, components_of
            )
            for one in pair_files(prediction, reference)
            if isinstance(one.prediction, Path) and isinstance(one.reference, Path)  # for the type checker
        ]
    sources = [Path(one) if isinstance(one, (str, Path)) else one for one in (prediction, reference)]
    files = [one for one in sources if isinstance(one, Path)]
    if any(path.is_dir() for path in files):
        raise DataError(
            f"{files[0]}: found a folder and instances in memory, expected two of the same kind. Give a file."
        )
    return [InstancePair(stem_of(files[0]) if files else "", sources[0], sources[1], components_of)]


def read_instance_pair(
    pair: InstancePair, labels: Labels | None = None
) -> tuple[Instances, Instances, Volume | None]:
    """Read both sides of a pair as `evaluate_instances` does.

    Args:
        pair: The pair.
        labels: Names of the classes; None names them by their values.

    Returns:
        Predictions and references with class indices, and the volume of the references, whose grid both have; None if they
        are in memory.

    Raises:
        DataError: As in `evaluate_instances`.

    >>> import numpy as np
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> len(read_instance_pair(InstancePair("a", lesions, lesions))[0])
    2
    """
    prediction, reference, _, volume = _read_pair(pair, labels)
    return prediction, reference, volume


def _instances_next_to(prediction: Path, components_of: ComponentsOf) -> Path:
    """Return the instance map predicted next to a label map, if it exists and components are not requested."""
    instances = instance_map_path(prediction)
    return instances if components_of == "neither" and instances.is_file() else prediction


@dataclass(frozen=True)
class _Side:
    """The prediction or the reference of a pair.

    Attributes:
        instances: The instances.
        volume: The map that they come from; None if they were in memory.
        coded_as: What their class numbers are: ``classes`` for class indices, ``values`` for label values, ``nothing``
            if their classes are not known.
    """

    instances: Instances
    volume: Volume | None
    coded_as: Literal["classes", "values", "nothing"]


def _read_pair(
    pair: InstancePair, labels: Labels | None
) -> tuple[Instances, Instances, Labels, Volume | None]:
    """Return both sides on one grid, with class indices, the label table of these indices, and the volume of the reference."""
    prefix = f"{pair.case}: " if pair.case else ""
    reference = _read(pair.reference, pair.components_of == "both", pair.reading, None, f"{prefix}reference")
    plain = ReadingOptions(
        pair.reading.orientation_from, pair.reading.trust_label_array
    )  # without its repairs
    prediction = _read(
        pair.prediction, pair.components_of != "neither", plain, reference.volume, f"{prefix}prediction"
    )
    table = labels or _labels_in(prediction.instances, reference.instances)
    return (
        _classified(prediction, table, labels is None, f"{prefix}prediction"),
        _classified(reference, table, labels is None, f"{prefix}reference"),
        table,
        reference.volume,
    )


def _read(
    source: Instances | Volume | Path | Callable[[], InstanceFile],
    from_components: bool,
    reading: ReadingOptions,
    like: Volume | None,
    where: str,
) -> _Side:
    """Return the instances of a source, reoriented like `like`, whose grid it must then share."""
    if isinstance(source, Instances):
        return _Side(source, None, "classes")
    if isinstance(source, Path):
        file = _read_file(source, from_components, reading)
    else:
        file = InstanceFile(source) if isinstance(source, Volume) else source()
    trusted = reading.trust_label_array
    volume = file.ids if like is None else aligned_to(file.ids, like, where=where, trust_array=trusted)
    voxels = label_values(volume, where)
    if from_components:
        return _Side(Instances.from_components(voxels), volume, "values")
    found = Instances.from_map(voxels, file.values, file.scores)
    return _Side(found, volume, "nothing" if file.values is None else "values")


def _read_file(path: Path, from_components: bool, reading: ReadingOptions) -> InstanceFile:
    if from_components:
        return InstanceFile(read_repaired_labels(path, reading))
    return read_instances(path, orientation_from=reading.orientation_from)


def _classified(side: _Side, labels: Labels, guessed: bool, where: str) -> Instances:
    """Return the instances with class indices of `labels`; if the labels were guessed, classes are values."""
    found, classes = side.instances, side.instances.classes
    if guessed or side.coded_as == "values":
        classes = labels.to_classes(classes, f"{where}: classes").astype(np.int64)
    elif side.coded_as == "nothing" and len(labels.foreground) > 1:
        raise DataError(
            f"{where}: found an instance map without a table of classes, expected one, because there are "
            f"{len(labels.foreground)} labels. Add the table (see medseg.io.companions.instance_files), or name one label."
        )
    elif len(classes) and classes.max() >= len(labels):
        raise DataError(
            f"{where}: found class {classes.max()}, expected 1 to {len(labels) - 1}. Give the labels of these classes."
        )
    return Instances(found.shape, found.starts, found.masks, classes, found.scores)


def _labels_in(*sides: Instances) -> Labels:
    classes = np.unique(np.concatenate([side.classes for side in sides]))
    return ONE_CLASS if set(classes.tolist()) <= {1} else Labels.from_values(classes)
