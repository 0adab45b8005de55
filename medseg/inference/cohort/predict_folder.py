"""Predict many images into one folder, as ``medseg predict`` does.

`predict` does everything in one call. Its steps, for callers that report progress of their own: `LoadedModels.load`,
`named_cases`, and a `FolderPrediction`, which yields one outcome per case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from medseg.cluster.claims import Claims
from medseg.cluster.dask_cluster import check_cluster
from medseg.cluster.parts import Part
from medseg.data.datasets.case_tables import read_table
from medseg.data.datasets.cases import UNDECIDED, Case, Dataset, ReadingOptions
from medseg.data.datasets.image_inputs import output_stem, read_images
from medseg.errors import ConfigError, MedsegError, warn_once
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.case_queue import CaseQueue, record_ids
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.cluster_prediction import prediction_on_cluster
from medseg.inference.cohort.cohort_tables import CohortTables, sweep_records
from medseg.inference.cohort.loaded_models import LoadedModels, ModelFolders, PredictInProcess, predict_pairs
from medseg.inference.cohort.output_files import OutputFiles, PredictionState
from medseg.inference.cohort.process_record import Counts, ProcessRecord
from medseg.inference.cohort.several_devices import predict_on_devices
from medseg.inference.cohort.written_files import FOLDER, copies_named
from medseg.inference.estimate import CaseEstimate, estimate_cases
from medseg.io.dicom.uneven_gaps import Uneven
from medseg.io.files import stem_of
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.runtime.progress import Progress
from medseg.storage.atomic import make_folder
from medseg.storage.free_space import require_space

Images = str | Path | Sequence[str | Path] | Sequence[Case] | Dataset
Existing = Literal["overwrite", "keep", "update"]
NamedCase = tuple[str, Case]
Predict = Callable[[Iterable[tuple[Case, Path]]], Iterator[Outcome]]


def named_cases(images: Images, channels: int, reading: ReadingOptions | None = None) -> list[NamedCase]:
    """Return cases, each with the name of its output.

    Args:
        images: Image files, folders of images or DICOM folders, named after their files; or tables of cases
            (``.tsv``, ``.csv``), cases or a dataset, named after their ids.
        channels: Number of channels of an image, see `read_images`.
        reading: What the user decided about files whose headers are wrong; None decides nothing. Given cases keep what it
            leaves open.

    Returns:
        Pairs of name and case; given cases in the given order, images of files and folders sorted by id.

    Raises:
        DataError: There is nothing to read, or files of some channels are missing.
    """
    if isinstance(images, Dataset):
        images = images.cases
    given = [images] if isinstance(images, (str, Path)) else list(images)
    later = reading or UNDECIDED
    cases = [one for one in given if isinstance(one, Case)]
    if cases:
        return [(case.id, replace(case, reading=case.reading.updated(later))) for case in cases]
    paths = [Path(one) for one in given if not isinstance(one, Case)]
    tables = [path for path in paths if path.suffix.lower() in (".tsv", ".csv")]
    rows = [
        case for path in tables for case in read_table(path, later.files_root, later.absent_channels).cases
    ]
    listed = [(case.id, replace(case, reading=case.reading.updated(later))) for case in rows]
    others = [path for path in paths if path not in tables]
    found = read_images(others, channels, reading) if others or not tables else []
    return [*listed, *((output_stem(case), case) for case in found)]


@dataclass(frozen=True)
class Cluster:
    """The Dask cluster to predict on.

    Attributes:
        address: ``local:N``, the address of a scheduler, or a YAML file; see `medseg.cluster.dask_cluster.connected`.
        device: Device of each worker; None for CUDA if available.
    """

    address: str
    device: str | None = None


class FolderPrediction:
    """The prediction of many images into one folder; iterate over it to run it.

    Everything that can be checked before any work is checked when it is created.

    Args:
        models: One model, or several to average.
        cases: Cases, each with the name of its output, as `named_cases` returns them.
        outputs: The folder and the kinds of files to write. The folder is created.
        existing: What to do with predictions that exist already. ``"overwrite"`` predicts all cases. ``"keep"`` skips
            the cases that are predicted already and refuses predictions of another model or other settings.
            ``"update"`` skips them, too, but replaces those of another model or other settings. Both predict a case again
            if its image or its files were changed, or if another program wrote the files.
        source_names: Whether to record the names of image files.
        part: The part of the cases to predict; None for all.
        cluster: The Dask cluster to predict on; None for this process, or one process per device.

    Attributes:
        outputs: The folder and the kinds of files.
        num_cases: Number of cases in the part, whether predicted already or not.
        pending: The cases to predict, each with the file of its label map.
        by_others: Number of pending cases that other processes have done; known at the end.

    Raises:
        ConfigError: Two cases share an output file, an output would replace an input, the suffix does not suit the images,
            or an existing prediction is refused.
        ModelError: Instances are wanted and the model does not find them.
        DiskFullError: The disk has less free space than uncompressed label maps and probabilities take.
    """

    def __init__(
        self,
        models: LoadedModels,
        cases: Sequence[NamedCase],
        outputs: OutputFiles,
        existing: Existing = "overwrite",
        *,
        source_names: bool = True,
        part: Part | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._models = models
        self._part, self._cluster = part, cluster
        self.outputs = outputs
        if outputs.instances:
            self._check_instances()
        listed = [case for _, case in cases]
        targets = [outputs.label_map_path(name) for name, _ in cases]
        outputs.check_suffix(listed)
        outputs.check_targets(listed, targets)
        make_folder(outputs.folder)
        sweep_records(outputs.folder)
        self._records = CaseRecords(outputs.folder, source_names=source_names)
        pairs = list(zip(listed, targets, strict=True))
        pairs = pairs if part is None else list(part.of(pairs))
        self.num_cases = len(pairs)
        self._before = record_ids(self._records, [target for _, target in pairs])
        if existing != "overwrite":
            pairs = [pair for pair in pairs if self._needs_prediction(*pair, existing)]
        self.pending: list[tuple[Case, Path]] = pairs
        self.by_others = 0
        first = models.predictors[0]
        needed = outputs.least_bytes((case for case, _ in pairs), first.labels.num_outputs)
        require_space(outputs.folder, needed, "the label maps and probabilities")

    def __len__(self) -> int:
        return len(self.pending)

    def __iter__(self) -> Iterator[Outcome]:
        return self.run()

    def run(self, progress: Progress | None = None) -> Iterator[Outcome]:
        """Predict the pending cases and record what wrote them.

        Cases that another process predicts into the same folder at the same time are left to it, and predicted here only if
        that process is killed.

        Args:
            progress: Called with (done, total, "window") for each image, or with "slice" if a 2D model finds instances. Not called
                on several devices.

        Yields:
            One outcome per case that is predicted here, once its files are written; in order on one device. A case that fails
            does not stop the others; one that fails in another process is reported, too.
        """
        options = {} if self._part is None else {"part": str(self._part)}
        counts = Counts(self.num_cases, self.num_cases - len(self.pending))
        process = ProcessRecord(self.outputs.folder, self._models.model_id, counts, options)
        process.write("running")
        with Claims(self.outputs.folder / FOLDER / "claims") as claims:
            tables = CohortTables(self.outputs.folder, claims)
            try:
                for outcome in self._shared(claims, counts, progress):
                    if tables.are_due:
                        process.write("running")
                        tables.write(wait=False)
                    yield outcome
            except BaseException:
                with suppress(MedsegError):  # the disk may be full; what stopped the work is more important
                    process.write("interrupted")
                    tables.write()
                raise
            process.write("finished")
            tables.write()

    def _shared(self, claims: Claims, counts: Counts, progress: Progress | None) -> Iterator[Outcome]:
        """Predict the pending cases that no other process predicts, and count them."""
        queue = CaseQueue(self.pending, self._records, claims, self._before, self._is_current)
        first = queue.next()
        if first is not None:
            with self._executor(progress) as predict:
                while first is not None:
                    for outcome in predict(chain([first], queue.free())):
                        queue.finish(outcome.target)
                        counts.predicted += outcome.error is None
                        counts.failed += outcome.error is not None
                        yield outcome
                    yield from queue.failed_elsewhere()
                    first = queue.next()
        yield from queue.failed_elsewhere()
        counts.by_others = self.by_others = queue.by_others
        claims.sweep(self._before)

    @contextmanager
    def _executor(self, progress: Progress | None) -> Iterator[Predict]:
        """Return the function that predicts cases: in this process, in one process per device, or on a cluster."""
        models, source = self._models, self._models.source
        if self._cluster is not None:
            if source is None:
                raise ConfigError(
                    "cluster: found models that were not loaded from folders, expected folders, which workers can read. Load "
                    "them with LoadedModels.load."
                )
            with prediction_on_cluster(
                self._cluster.address, source, self.outputs, self._records, self._cluster.device
            ) as predict:
                yield predict
        elif len(models.devices) == 1 or source is None:
            yield lambda pairs: predict_pairs(models, self.outputs, self._records, pairs, progress)
        else:
            work = PredictInProcess(source, self.outputs, self._records, len(models.devices))
            yield partial(self._on_devices, work)

    def _on_devices(self, work: PredictInProcess, pairs: Iterable[tuple[Case, Path]]) -> Iterator[Outcome]:
        devices = [str(one) for one in self._models.devices]
        for outcome in predict_on_devices(work, devices, pairs, warn_once):
            if outcome.error is not None:  # a process that was killed has not recorded it
                self._records.write_failure(outcome)
            yield outcome

    def _check_instances(self) -> None:
        """Raise unless a single model finds instances and no other output is requested."""
        first, *others = self._models.predictors
        if self.outputs.copies:
            raise ConfigError(
                f"instances: found {', '.join(sorted(self.outputs.copies))}, expected no copies of label maps, because instances may overlap. Leave one out."
            )
        if others or self.outputs.probabilities or self.outputs.uncertainty:
            kind = "probabilities" if self.outputs.probabilities else "uncertainty"
            found = "several models" if others else kind
            raise ConfigError(
                f"instances: found {found}, expected one model, no probabilities and no uncertainty, because one model "
                "finds instances. Leave one out."
            )
        first.require_instances()

    def _is_current(self, case: Case, target: Path) -> bool:
        state = self.outputs.state(case, target, self._records, self._models.model_id)
        return state is PredictionState.CURRENT

    def _needs_prediction(self, case: Case, target: Path, existing: Existing) -> bool:
        """Return whether a case still has to be predicted; if not, its recorded failure, if any, is removed.

        Raise `ConfigError` if another model has predicted it and `existing` is ``keep``.
        """
        state = self.outputs.state(case, target, self._records, self._models.model_id)
        if state is PredictionState.OTHER_MODEL and existing == "keep":
            raise ConfigError(
                f"{target}: found a label map of another model or other settings, expected one of this model. Choose another "
                "output folder, or replace it: leave out --skip-existing, or set existing='update'."
            )
        if state is PredictionState.CURRENT:
            self._records.forget_failure(stem_of(target))
        return state is not PredictionState.CURRENT


def predict(
    model: ModelFolders,
    images: Images,
    output: str | Path,
    *,
    suffix: str = ".nii.gz",
    probabilities: bool = False,
    uncertainty: bool = False,
    instances: bool = False,
    copies: Sequence[str] = (),
    existing: Existing = "overwrite",
    source_names: bool = True,
    part: str | None = None,
    cluster: str | None = None,
    orientation_from: OrientationFrom | None = None,
    series: str | int | None = None,
    uneven: Uneven = "refuse",
    device: str | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    progress: Progress | None = None,
    **settings: object,
) -> list[Outcome]:
    """Predict many images and write their label maps into a folder, as ``medseg predict`` does.

    Each label map is on the grid of its image file. The tables ``cases.tsv``, ``failed.tsv`` and ``volumes.tsv`` and the
    file ``run.json`` in the folder record what was predicted, from what, and by which model and settings. Use `medseg.load` to predict single images without writing files.

    Args:
        model: Model folder, or several, whose probabilities are averaged.
        images: Image files, folders of images, DICOM folders, tables with the columns case and image,
            `Case` objects, or a dataset.
        output: Folder of the label maps; created if necessary.
        suffix: Suffix of the label maps, such as ``.nii.gz``; ``.png`` for natural images; for DICOM series also
            ``.seg.dcm``, ``.labelmap.dcm`` or ``.rtstruct.dcm``.
        probabilities: Write ``NAME_probabilities.nii``, too: one volume per label or region.
        uncertainty: Write ``NAME_uncertainty.nii``, too: the entropy of the probabilities, between 0 and 1.
        instances: Write ``NAME_instances.nii.gz`` and a table of classes and scores, too; for instance models.
        copies: Copies of the label map in other forms to write, too: ``"split_labels"`` for the folder ``NAME_labels`` with one
            mask per label, ``"layers"`` for ``NAME_layers.seg.nrrd``, in which regions overlap, ``"label_table"`` for
            ``NAME_labels.tsv``.
        existing: ``"overwrite"`` existing predictions; ``"keep"`` those of this model and refuse others; or
            ``"update"``: keep those of this model and replace others.
        source_names: Record the names of image files. If False, tables and messages name the cases only.
        part: ``"I/N"`` to predict the I-th of N parts of the cases, for job arrays; None for all.
        cluster: ``"local:N"`` for N processes, the address of a Dask scheduler, or a YAML file that describes jobs of SLURM, to
            spread cases over workers, each on `device`; `progress` is then not called. None for this process.
        orientation_from: ``"sform"``, ``"qform"`` or ``"pixdim"``: description of the geometry to use where a NIfTI header
            leaves it open or contradicts itself; None refuses files in which left and right are a guess. See `medseg.read`.
        series: UID of the DICOM series to read in folders with several, or its number in the list of a folder; None if only one of
            them is a volume. See `medseg.read`.
        uneven: What to do with DICOM series with uneven gaps between slices: ``"refuse"``, or ``"resample"`` to interpolate slices.
        device: Device such as ``"cpu"`` or ``"cuda:1"``; several such as ``"cuda:0,cuda:1"``, or ``"all"`` CUDA devices, to
            spread cases over; None for CUDA if available.
        max_memory: Maximum resident memory of the process in bytes, or a size such as ``"6GB"``; None for half of what is
            free. With several devices, the limit applies to each process.
        max_device_memory: Maximum memory allocated on a CUDA device, in bytes or as a size; None for nine tenths of what
            is free.
        progress: Called with (done, total, "window") for each image.
        **settings: Prediction settings that replace the stored ones, such as ``overlap=0.25``; see `medseg.load`.

    Returns:
        One outcome per predicted case, with its file, its seconds and, if it failed, the error. A case that fails
        does not stop the others.

    Raises:
        ModelError: A model folder is missing or damaged, or the models do not fit each other.
        DataError: There are no images, or files are missing.
        ConfigError: A setting is unknown, or an output would replace an input, another output, or a prediction of another
            model (``existing="keep"``).

    Examples:
        >>> import tempfile
        >>> import medseg
        >>> from medseg.data.datasets.phantom import phantom_case
        >>> from medseg.model_folder.folder import save_model
        >>> from medseg.model_folder.settings import SavedModel
        >>> saved = SavedModel.parse({
        ...     "medseg": "0.1", "name": "liver", "model": {"name": "unet_3d", "channels": [4, 8]},
        ...     "channel_names": ["CT"], "preprocessing": {"channels": [{"method": "zscore"}]}, "window": [8, 8, 8],
        ... })
        >>> model = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        >>> labels = medseg.Labels.from_names({"background": 0, "liver": 5})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model", model, saved, labels)
        ...     medseg.write(phantom_case(0, shape=(12, 10, 9))[0], f"{folder}/ct.nii.gz")
        ...     outcomes = medseg.predict(f"{folder}/model", [f"{folder}/ct.nii.gz"], f"{folder}/out", device="cpu")
        >>> [(outcome.target.name, outcome.error) for outcome in outcomes]
        [('ct.nii.gz', None)]
    """
    if cluster is not None:
        check_cluster(cluster)
    models = LoadedModels.load(
        model,
        settings,
        device=device if cluster is None else "cpu",
        max_memory=max_memory,
        max_device_memory=max_device_memory,
    )
    outputs = OutputFiles(
        Path(output), suffix, instances, probabilities, uncertainty, copies=copies_named(copies)
    )
    reading = ReadingOptions(orientation_from, series=series, uneven=uneven)
    cases = named_cases(images, models.num_channels, models.reading(reading))
    prediction = FolderPrediction(
        models,
        cases,
        outputs,
        existing,
        source_names=source_names,
        part=None if part is None else Part.parse(part),
        cluster=None if cluster is None else Cluster(cluster, device),
    )
    return list(prediction.run(progress))


def estimate(
    model: ModelFolders,
    images: Images,
    *,
    orientation_from: OrientationFrom | None = None,
    series: str | int | None = None,
    uneven: Uneven = "refuse",
    device: str | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    **settings: object,
) -> list[CaseEstimate]:
    """Estimate the time and memory that predicting images takes, without predicting them.

    Args:
        model: Model folder, or several, as for `predict`.
        images: Image files, folders of images, DICOM folders, tables with the columns case and image,
            `Case` objects, or a dataset.
        orientation_from: As for `predict`.
        series: As for `predict`.
        uneven: As for `predict`.
        device: Device such as ``"cpu"`` or ``"cuda:1"``; None for CUDA if available.
        max_memory: Maximum resident memory of the process in bytes, or a size such as ``"6GB"``.
        max_device_memory: Maximum memory allocated on a CUDA device, in bytes or as a size.
        **settings: Prediction settings that replace the stored ones, such as ``overlap=0.25``.

    Returns:
        One estimate per case.

    Raises:
        ModelError: A model folder is missing or damaged, or the models do not fit each other.
        DataError: There are no images, or files are missing.

    Examples:
        >>> import tempfile
        >>> import medseg
        >>> from medseg.data.datasets.phantom import phantom_case
        >>> from medseg.model_folder.folder import save_model
        >>> from medseg.model_folder.settings import SavedModel
        >>> saved = SavedModel.parse({
        ...     "medseg": "0.1", "name": "liver", "model": {"name": "unet_3d", "channels": [4, 8]},
        ...     "channel_names": ["CT"], "preprocessing": {"channels": [{"method": "zscore"}]}, "window": [8, 8, 8],
        ... })
        >>> model = medseg.build_model("unet_3d", in_channels=1, num_classes=2, channels=[4, 8])
        >>> labels = medseg.Labels.from_names({"background": 0, "liver": 5})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model", model, saved, labels)
        ...     medseg.write(phantom_case(0, shape=(12, 10, 9))[0], f"{folder}/ct.nii.gz")
        ...     (found,) = medseg.estimate(f"{folder}/model", [f"{folder}/ct.nii.gz"], device="cpu")
        >>> found.parts[0].windows > 0
        True
    """
    models = LoadedModels.load(
        model, settings, device=device, max_memory=max_memory, max_device_memory=max_device_memory
    )
    reading = ReadingOptions(orientation_from, series=series, uneven=uneven)
    cases = named_cases(images, models.num_channels, models.reading(reading))
    return list(estimate_cases(models.predictors, [case for _, case in cases]))
