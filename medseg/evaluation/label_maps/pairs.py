"""Which prediction belongs to which reference."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError, did_you_mean
from medseg.io.files import read_labels, stem_of, suffix_of
from medseg.labels.label_sets import AnnotatedLabels
from medseg.volumes.volume import Volume


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, in memory, as files or as a function that makes one, and the id of their case.

    `drawn` names the labels that were drawn in the reference; None for all of them.
    """

    case: str
    prediction: Volume | Path
    reference: Volume | Path | Callable[[], Volume]
    annotated: AnnotatedLabels | None = None

    def volumes(self) -> tuple[Volume, Volume]:
        """Prediction and reference, read or made."""
        return _volume(self.prediction), _volume(self.reference)


def _volume(source: Volume | Path | Callable[[], Volume]) -> Volume:
    if isinstance(source, Path):
        return read_labels(source)
    return source if isinstance(source, Volume) else source()


def pair_files(
    prediction: str | Path,
    reference: str | Path,
    cases: Collection[str] | None = None,
    *,
    only_predicted: bool = False,
) -> list[Pair]:
    """Match two label-map files, or two folders of them by case id: the file name without its suffix.

    Every reference (of `cases`, where given) needs a prediction, because a mean over the cases that happen
    to be there flatters. Predictions without a reference cannot be measured and are passed over.

    Args:
        prediction: file or folder.
        reference: file or folder, as `prediction`.
        cases: ids to keep, such as those of one fold; all unless given.
        only_predicted: leave out references that have no prediction.

    Raises:
        DataError: a path is missing, a file stands against a folder, a folder holds one case twice or no
            label map, or predictions are missing; all of them are listed.
    """
    prediction, reference = Path(prediction), Path(reference)
    for path in (prediction, reference):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the path.")
    if prediction.is_dir() != reference.is_dir():
        raise DataError(
            f"{prediction}, {reference}: found a file and a folder, expected two of a kind. "
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
            f"{', '.join(missing)}.{did_you_mean(missing[0], unmatched)} Predict them first; or measure only what is there with "
            "--only-predicted."
        )
    return [Pair(case, predictions[case], references[case]) for case in wanted]


def label_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by case id, sorted; hidden and other files are passed over.

    Raises:
        DataError: two files of one case, or none at all.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # .img holds the voxels of the .hdr beside it
        if path.name.startswith(".") or suffix_of(path) in ("", ".img") or not path.is_file():
            continue
        case = stem_of(path)
        if case in files:
            raise DataError(
                f"{folder}: case {case!r} stands twice: found {files[case].name} and {path.name}, expected "
                "one. Remove one of them."
            )
        files[case] = path
    if not files:
        raise DataError(
            f"{folder}: no label map in it: expected files such as case_01.nii.gz. Check the path."
        )
    return files


def _wanted(references: dict[str, Path], cases: Collection[str] | None, folder: Path) -> list[str]:
    if cases is None:
        return list(references)
    absent = [case for case in cases if case not in references]
    if absent:
        raise DataError(
            f"{folder}: references are missing for {', '.join(absent)}.{did_you_mean(absent[0], references)} "
            "Name cases that have a reference."
        )
    return list(cases)
