"""What the service and its prediction process send to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.serve.job import Failure


@dataclass(frozen=True)
class LabelInfo:
    """A label of a model.

    Attributes:
        name: Its name.
        values: Its value in label maps; for a region, the values of its labels.
        colour: Red, green and blue from 0 to 255.
    """

    name: str
    values: tuple[int, ...]
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model.

    Attributes:
        id: Identifier in requests.
        channels: Names of the input channels.
        labels: Its labels, or regions if it predicts those.
        description: One line about it.
        version: Beginning of the hash of its model folder.
    """

    id: str
    channels: tuple[str, ...]
    labels: tuple[LabelInfo, ...]
    description: str
    version: str


@dataclass(frozen=True)
class Task:
    """A prediction.

    Attributes:
        folder: Folder of the job.
        upload: Name of the uploaded file in it, or of the folder of a series of the DICOMweb server.
        model: Identifier of the model.
        suffix: File format of the label map.
        series: Number or UID of the DICOM series in an archive with several; empty if only one is a volume.
        max_unpacked: Largest size of an unpacked archive in bytes.
    """

    folder: Path
    upload: str
    model: str
    suffix: str
    series: str
    max_unpacked: int


@dataclass(frozen=True)
class Advance:
    """A part of a prediction is done.

    Attributes:
        done: Windows that are done.
        total: All windows.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """A prediction is done.

    Attributes:
        label_map_hash: Hash of shape, affine and voxels of the label map.
        notes: Remarks about the image and the prediction.
    """

    label_map_hash: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A prediction, or the loading of the models, has failed.

    Attributes:
        failure: The kind of the failure.
        message: What the client is shown.
        place: For an error in medseg, its class and the line of code, for the log.
    """

    failure: Failure
    message: str
    place: str = ""


Answer = Advance | Finished | Failed
