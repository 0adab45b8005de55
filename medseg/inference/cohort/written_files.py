"""The files that a prediction consists of: a label map and its companions."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from medseg.errors import ConfigError
from medseg.io.companions.instance_files import instance_map_path, instance_table_path
from medseg.io.companions.label_copies import label_table_path, layers_path, masks_folder
from medseg.io.files import stem_of

FOLDER = ".cohort"
"""Name of the folder of records in a folder of label maps."""


class FileKind(StrEnum):
    """The kinds of files that may be written with a label map.

    Attributes:
        INSTANCES: ``NAME_instances`` and its table.
        PROBABILITIES: ``NAME_probabilities.nii``.
        UNCERTAINTY: ``NAME_uncertainty.nii``.
        LOGIT_SAMPLE: ``.cohort/logits/NAME.npz``, see `medseg.inference.uncertainty.logit_sample`.
        SPLIT_LABELS: The folder ``NAME_labels`` with one mask per label, see `medseg.io.companions.label_copies`.
        LAYERS: ``NAME_layers.seg.nrrd``.
        LABEL_TABLE: ``NAME_labels.tsv``.
    """

    INSTANCES = "instances"
    PROBABILITIES = "probabilities"
    UNCERTAINTY = "uncertainty"
    LOGIT_SAMPLE = "logit_sample"
    SPLIT_LABELS = "split_labels"
    LAYERS = "layers"
    LABEL_TABLE = "label_table"


FileKinds = frozenset[FileKind]
NO_KINDS: FileKinds = frozenset()
COPIES: FileKinds = frozenset({FileKind.SPLIT_LABELS, FileKind.LAYERS, FileKind.LABEL_TABLE})
"""Copies of the label map in other forms."""


def copies_named(names: Iterable[str]) -> FileKinds:
    """Return the kinds of copies with these names.

    Args:
        names: ``split_labels``, ``layers`` and ``label_table``, any of them.

    Returns:
        The kinds.

    Raises:
        ConfigError: A name is unknown.
    """
    known = {kind.value: kind for kind in COPIES}
    names = list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"copies: found {', '.join(unknown)}, expected any of {', '.join(sorted(known))}. Correct it."
        )
    return frozenset(known[name] for name in names)


def probabilities_path(target: Path) -> Path:
    """Return the file for the probabilities that belong to a label map."""
    return target.with_name(f"{stem_of(target)}_probabilities.nii")


def uncertainty_path(target: Path) -> Path:
    """Return the file for the uncertainty map that belongs to a label map."""
    return target.with_name(f"{stem_of(target)}_uncertainty.nii")


def logit_sample_path(target: Path) -> Path:
    """Return the file for the sample of logits that belongs to a label map."""
    return target.parent / FOLDER / "logits" / f"{stem_of(target)}.npz"


def written_files(target: Path, kinds: FileKinds) -> list[Path]:
    """Return the label map and all files that are written with it.

    Args:
        target: The label map.
        kinds: The kinds of files besides the label map.

    Returns:
        The files, the label map first, and the folder of masks.
    """
    files = [target]
    if FileKind.INSTANCES in kinds:
        instance_map = instance_map_path(target)
        files += [instance_map, instance_table_path(instance_map)]
    if FileKind.PROBABILITIES in kinds:
        files.append(probabilities_path(target))
    if FileKind.UNCERTAINTY in kinds:
        files.append(uncertainty_path(target))
    if FileKind.LOGIT_SAMPLE in kinds:
        files.append(logit_sample_path(target))
    if FileKind.SPLIT_LABELS in kinds:
        files.append(masks_folder(target))
    if FileKind.LAYERS in kinds:
        files.append(layers_path(target))
    if FileKind.LABEL_TABLE in kinds:
        files.append(label_table_path(target))
    return files
