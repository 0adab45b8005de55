"""Model folders that are loaded for the prediction of many cases, on one device or on several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medseg.data.datasets.cases import UNDECIDED, Case, ReadingOptions
from medseg.inference.cohort.batch import Outcome, Segmenter, predict_files
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.instance_batch import predict_instance_files
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.cohort.written_files import FileKind, FileKinds
from medseg.inference.predictor import Predictor, load
from medseg.inference.predictor_ensemble import PredictorEnsemble, require_same_task
from medseg.io.companions.label_copies import write_label_table, write_layers, write_masks
from medseg.io.files import write
from medseg.labels.segments import Algorithm
from medseg.model_folder.folder import find_model_folder
from medseg.runtime.devices import device_list
from medseg.runtime.progress import Progress
from medseg.volumes.volume import Volume

_VERSION_DIGITS = 12
ModelFolders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ModelSource:
    """What loads models again in another process.

    Attributes:
        folders: The model folders.
        settings: Prediction settings that replace the stored ones.
        max_memory: Maximum resident memory of a process.
        max_device_memory: Maximum memory allocated on its CUDA device.
    """

    folders: tuple[str, ...]
    settings: dict[str, object]
    max_memory: int | str | None
    max_device_memory: int | str | None


@dataclass(frozen=True)
class LoadedModels:
    """One loaded model, or several for the same labels whose probabilities are averaged.

    Attributes:
        predictors: One predictor per model folder.
        model_id: The models and settings, for the provenance of what they predict.
        devices: The devices to spread cases over; the predictors are on the first one.
        source: What `load` was called with, for processes on other devices; None for predictors that were not loaded by it.
    """

    predictors: tuple[Predictor, ...]
    model_id: ModelId
    devices: tuple[str | None, ...] = (None,)
    source: ModelSource | None = None

    @classmethod
    def load(
        cls,
        folders: ModelFolders,
        settings: Mapping[str, object] | None = None,
        *,
        device: str | None = None,
        max_memory: int | str | None = None,
        max_device_memory: int | str | None = None,
    ) -> LoadedModels:
        """Load model folders.

        Args:
            folders: One model folder, or several to average.
            settings: Prediction settings that replace the stored ones of every model, see `medseg.load`.
            device: Device such as ``"cpu"`` or ``"cuda:1"``; several such as ``"cuda:0,cuda:1"``, or ``"all"`` CUDA devices, to
                spread cases over; None for CUDA if available.
            max_memory: Maximum resident memory of the process in bytes, or a size such as ``"6GB"``.
            max_device_memory: Maximum memory allocated on a CUDA device, in bytes or as a size.

        Returns:
            The predictors, in the order of the folders, and their identity for the provenance record.

        Raises:
            ModelError: A folder is missing or damaged, or the models have different labels or channels.
        """
        listed = [folders] if isinstance(folders, (str, Path)) else list(folders)
        settings = settings or {}
        devices = device_list(device)
        predictors = tuple(
            load(
                folder,
                device=devices[0],
                max_memory=max_memory,
                max_device_memory=max_device_memory,
                **settings,
            )
            for folder in listed
        )
        require_same_task(predictors)
        model_id = ModelId.from_folders([find_model_folder(one) for one in listed], settings)
        source = ModelSource(tuple(map(str, listed)), dict(settings), max_memory, max_device_memory)
        return cls(predictors, model_id, devices, source)

    @property
    def num_channels(self) -> int:
        """The number of channels of an image."""
        return len(self.predictors[0].saved.channel_names)

    def reading(self, options: ReadingOptions | None = None) -> ReadingOptions:
        """Return how images of these models are read: cases may lack channels if all of the models were trained with such cases.

        Args:
            options: What else the user decided; None decides nothing.

        Returns:
            The options.
        """
        accepting = all(one.saved.absent_channels == "zeros" for one in self.predictors)
        return replace(options or UNDECIDED, absent_channels="zeros" if accepting else "refuse")

    @property
    def algorithm(self) -> Algorithm:
        """Names of the models, and the beginning of the hash of each model folder as its version."""
        names = dict.fromkeys(one.saved.name for one in self.predictors)
        versions = (version[:_VERSION_DIGITS] for version in self.model_id.model.split())
        return Algorithm(" + ".join(names), " + ".join(versions) or "unknown")

    def segmenter(self, scratch: Path) -> Segmenter:
        """Return the predictor, or the ensemble of all, with temporary files in `scratch`."""
        several = len(self.predictors) > 1
        return PredictorEnsemble(self.predictors, scratch) if several else self.predictors[0]


def predict_pairs(
    models: LoadedModels,
    outputs: OutputFiles,
    records: CaseRecords,
    pairs: Iterable[tuple[Case, Path]],
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Predict cases in this process and record what wrote them.

    Args:
        models: One model, or several to average.
        outputs: The folder and the kinds of files to write.
        records: The records of the folder.
        pairs: Each case and the file of its label map; consumed as cases are read.
        progress: Called with (done, total, "window") of each image; with slices if instances are wanted.

    Yields:
        One outcome per case, in order, once its files are written.
    """
    recording = partial(
        records.recording,
        model_id=models.model_id,
        labels=models.predictors[0].labels,
        kinds=outputs.kinds,
    )
    if outputs.instances:
        predictor = models.predictors[0]
        outcomes = predict_instance_files(predictor, pairs, progress=progress, recording=recording)
    else:
        outcomes = predict_files(
            models.segmenter(outputs.folder),
            pairs,
            progress=progress,
            kinds=outputs.kinds,
            evidence=outputs.evidence,
            recording=recording,
            write=partial(_write_with_copies, models, outputs.copies),
        )
    for outcome in outcomes:
        if outcome.error is not None:
            records.write_failure(outcome)
        yield outcome


def _write_with_copies(models: LoadedModels, copies: FileKinds, label_map: Volume, path: Path) -> None:
    """Write the copies of a label map in other forms, then the label map."""
    labels = models.predictors[0].labels
    if FileKind.SPLIT_LABELS in copies:
        write_masks(label_map, path, labels)
    if FileKind.LAYERS in copies:
        write_layers(label_map, path, labels)
    if FileKind.LABEL_TABLE in copies:
        write_label_table(path, labels)
    write(label_map, path, names=labels, algorithm=models.algorithm)


@dataclass(frozen=True)
class PredictInProcess:
    """The work of one process of several, see `medseg.inference.cohort.several_devices.Work`.

    Attributes:
        source: The models.
        outputs: The folder and the kinds of files to write.
        records: The records of the folder.
        processes: Number of processes that share the processor.
    """

    source: ModelSource
    outputs: OutputFiles
    records: CaseRecords
    processes: int

    def __call__(self, device: str, pairs: Iterator[tuple[Case, Path]]) -> Iterator[Outcome]:
        """Load the models on the device and predict the cases."""
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // self.processes))
        source = self.source
        models = LoadedModels.load(
            source.folders,
            source.settings,
            device=device,
            max_memory=source.max_memory,
            max_device_memory=source.max_device_memory,
        )
        yield from predict_pairs(models, self.outputs, self.records, pairs)
