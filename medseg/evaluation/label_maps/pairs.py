"""Matching of predictions with references."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from medseg.data.datasets.cases import UNDECIDED, ReadingOptions
from medseg.data.datasets.read_case import read_repaired_labels
from medseg.errors import DataError, did_you_mean, no_such_path
from medseg.io.files import stem_of, suffix_of
from medseg.io.segmentation_files import segmentation_kind
from medseg.labels.label_sets import AnnotatedLabels
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.volume import Volume

_COMPANIONS = ("_instances", "_probabilities", "_uncertainty", "_layers")
"""Ends of the names of files that `medseg predict` writes for a case next to its label map."""


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference.

    Attributes:
        case: Id of the case.
        prediction: A label volume or file.
        reference: A label volume, a file, or a function that returns a volume.
        annotated: Names of the labels annotated in the reference; None for all.
        reading: What the user decided about files whose headers are wrong.

    >>> from pathlib import Path
    >>> Pair("case_01", Path("predictions/case_01.nii.gz"), Path("labels/case_01.nii.gz")).case
    'case_01'
    """

    case: str
    prediction: Volume | Path
    reference: Volume | Path | Callable[[], Volume]
    annotated: AnnotatedLabels | None = None
    reading: ReadingOptions = UNDECIDED

    def volumes(self) -> tuple[Volume, Volume]:
        """Return prediction and reference, reading files."""
        plain = ReadingOptions(self.reading.orientation_from)  # repairs are those of the reference
        if _has_no_own_grid(self.prediction):
            reference = _volume(self.reference, self.reading)
            prediction = _volume(self.prediction, plain, reference)
        else:
            prediction = _volume(self.prediction, plain)
            reference = _volume(self.reference, self.reading, prediction)
        if self.reading.trust_label_array and prediction.grid.shape == reference.grid.shape:
            # The header of the reference is the one that is wrong: distances are those of the prediction's grid.
            where = f"{self.case}: reference"
            fix = "Give the reference of this image"
            reference = align_to_grid(
                reference, prediction.grid, where=where, grid_of="its prediction", fix=fix, trust_array=True
            )
        return prediction, reference


def _has_no_own_grid(source: Volume | Path) -> bool:
    """Return whether a file is a DICOM segmentation, which may lack slices or state no grid at all."""
    return isinstance(source, Path) and segmentation_kind(source) is not None


def _volume(
    source: Volume | Path | Callable[[], Volume], reading: ReadingOptions, like: Volume | None = None
) -> Volume:
    if isinstance(source, Path):
        return read_repaired_labels(source, reading, like=like)
    return source if isinstance(source, Volume) else source()


def pair_files(
    prediction: str | Path,
    reference: str | Path,
    cases: Collection[str] | None = None,
    *,
    only_predicted: bool = False,
) -> list[Pair]:
    """Match two label-map files, or two folders of them by case id: the file name without its suffix.

    Every reference (of `cases`, if given) needs a prediction, because a mean over only the predicted cases would be
    too optimistic. Predictions without a reference are ignored.

    Args:
        prediction: File or folder.
        reference: File or folder, of the same kind as `prediction`.
        cases: Ids to keep, such as those of one fold; None keeps all.
        only_predicted: Whether to leave out references that have no prediction.

    Returns:
        One pair per case, sorted by case id.

    Raises:
        DataError: A path is missing, a file is paired with a folder, a folder has two files of one case or no label
            map, or predictions are missing; the message lists all of them.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "case_01.nii.gz")
    ...     file.touch()
    ...     [pair.case for pair in pair_files(folder, folder)]
    ['case_01']
    """
    prediction, reference = Path(prediction), Path(reference)
    for path in (prediction, reference):
        if not path.exists():
            raise DataError(no_such_path(path))
    if prediction.is_dir() != reference.is_dir():
        raise DataError(
            f"{prediction}, {reference}: found a file and a folder, expected two of the same kind. "
            "Give both as files or both as folders."
        )
    if not reference.is_dir():
        return [Pair(stem_of(reference), prediction, reference)]
    predictions, references = label_files(prediction), label_files(reference)
    wanted = _wanted(references, cases, reference)
    missing = [case for case in wanted if case not in predictions]
    if only_predicted and len(missing) < len(wanted):
        wanted = [case for case in wanted if case in predictions]
    elif missing:
        unmatched = predictions.keys() - references.keys()
        raise DataError(
            f"{prediction}: predictions are missing for {len(missing)} of {len(wanted)} references: "
            f"{', '.join(missing)}.{did_you_mean(missing[0], unmatched)} Predict them first, or evaluate only predicted cases with "
            "--only-predicted."
        )
    return [Pair(case, predictions[case], references[case]) for case in wanted]


def predictions_without_reference(prediction: str | Path, reference: str | Path) -> list[str]:
    """Return the cases of a folder of predictions that `pair_files` leaves out; files that belong to another case are none.

    Args:
        prediction: File or folder.
        reference: File or folder, of the same kind as `prediction`.

    Returns:
        The case ids, sorted; empty for files.
    """
    if not Path(prediction).is_dir():
        return []
    predictions, references = label_files(Path(prediction)), label_files(Path(reference))
    companions = {f"{case}{ending}" for case in predictions for ending in _COMPANIONS}
    return [case for case in predictions if case not in references and case not in companions]


def label_files(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by case id, sorted; hidden and other files are ignored.

    Args:
        folder: The folder.

    Returns:
        The files by case id.

    Raises:
        DataError: Two files belong to one case, or there is no image file.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # .img holds the voxels of the .hdr file with the same name
        if path.name.startswith(".") or suffix_of(path) in ("", ".img") or not path.is_file():
            continue
        case = stem_of(path)
        if case in files:
            raise DataError(
                f"{folder}: case {case!r} has two files: found {files[case].name} and {path.name}, expected "
                "one. Remove one of them."
            )
        files[case] = path
    if not files:
        raise DataError(
            f"{folder}: found no label map, expected files such as case_01.nii.gz. Check the path."
        )
    return files


def _wanted(references: dict[str, Path], cases: Collection[str] | None, folder: Path) -> list[str]:
    if cases is None:
        return list(references)
    absent = [case for case in cases if case not in references]
    if absent:
        raise DataError(
            f"{folder}: found no reference of {', '.join(absent)}, expected one per case.{did_you_mean(absent[0], references)} "
            "Remove these cases, or add their references."
        )
    return list(cases)
