"""Predict the image of one job in the prediction process."""

from __future__ import annotations

import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import ReadingOptions
from medseg.errors import DataError, DataWarning, MedsegError, ResourceError
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.loaded_models import LoadedModels
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.cohort.predict_folder import FolderPrediction, NamedCase, named_cases
from medseg.report.prediction_report import write_prediction_report
from medseg.runtime.formatting import pluralise
from medseg.runtime.out_of_memory import is_out_of_memory
from medseg.serve.job import ARCHIVE, LABEL_MAP, OUTPUT, REPORT, Failure
from medseg.serve.settings import ModelSettings
from medseg.serve.worker.job_input import job_input
from medseg.serve.worker.messages import Advance, Answer, Failed, Finished, LabelInfo, ModelInfo, Task

_BETWEEN = 0.25  # seconds between two messages about the progress
_SERIES_OPTION = "--series (series in Python and configs)"
_INTERNAL = "medseg met an unexpected error. Ask the administrator of the service, whose log names the place."


def load_models(models: ModelSettings) -> dict[str, LoadedModels]:
    """Load the models of the service.

    Args:
        models: The models.

    Returns:
        The models by identifier: the name of each, with a number if two have the same.

    Raises:
        ModelError: A folder is missing or damaged.
    """
    loaded: dict[str, LoadedModels] = {}
    for folder in models.folders:
        found = LoadedModels.load(
            folder,
            models.settings,
            device=models.device,
            max_memory=models.max_memory,
            max_device_memory=models.max_device_memory,
        )
        name = found.predictors[0].saved.name
        same = sum(one.predictors[0].saved.name == name for one in loaded.values())
        loaded[f"{name}-{same + 1}" if same else name] = found
    return loaded


def model_info(model_id: str, models: LoadedModels) -> ModelInfo:
    """Return what clients are told about a model.

    Args:
        model_id: Its identifier.
        models: The loaded model.

    Returns:
        Names, channels and labels.
    """
    predictor = models.predictors[0]
    labels = tuple(
        LabelInfo(one.name, tuple(one.values), (one.colour[0], one.colour[1], one.colour[2]))
        for one in predictor.labels.evaluated
    )
    return ModelInfo(
        model_id, tuple(predictor.saved.channel_names), labels, repr(predictor), models.algorithm.version
    )


def predict_job(models: LoadedModels, task: Task, send: Callable[[Answer], None]) -> Finished | Failed:
    """Predict the image of a job and write label map and report into its folder.

    Args:
        models: The model.
        task: The prediction.
        send: Receives the progress.

    Returns:
        What became of it; this function raises no error that another job could not meet, too.
    """
    try:
        with _notes() as notes:
            found = _predicted(models, task, _throttled(send))
        return replace(found, notes=tuple(cleaned(note, task.folder) for note in (*found.notes, *notes)))
    except MedsegError as error:
        kind = Failure.RESOURCES if isinstance(error, ResourceError) else Failure.REFUSED
        return Failed(kind, cleaned(str(error), task.folder))
    except Exception as error:
        if is_out_of_memory(error):
            return Failed(
                Failure.RESOURCES,
                "found too little memory for this image. Ask the administrator of the service.",
            )
        return Failed(Failure.INTERNAL, _INTERNAL, place_of(error))


def cleaned(message: str, folder: Path) -> str:
    """Return a message for clients: without the path of the job, and with the field of the form instead of an option.

    Args:
        message: The message.
        folder: Folder of the job.

    Returns:
        The message with paths relative to that folder.

    >>> cleaned("/srv/jobs/5e2f/image.nii.gz: found no voxels.", Path("/srv/jobs/5e2f"))
    'image.nii.gz: found no voxels.'
    """
    for path in (str(folder), str(folder.resolve())):
        message = message.replace(f"{path}/", "").replace(path, "upload")
    return message.replace(_SERIES_OPTION, "the field series")


def place_of(error: BaseException) -> str:
    """Return the class of an error and the line that raised it; not its message, which may hold values of headers."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"@{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _predicted(models: LoadedModels, task: Task, send: Callable[[int, int, str], None]) -> Finished:
    image = job_input(task.folder, task.upload, task.max_unpacked)
    reading = ReadingOptions(series=task.series or None)
    cases = _only_case(named_cases(image, models.num_channels, models.reading(reading)), task.upload)
    output = task.folder / OUTPUT
    shutil.rmtree(output, ignore_errors=True)  # of an earlier start
    outputs = OutputFiles(output, task.suffix)
    prediction = FolderPrediction(models, cases, outputs, source_names=False)
    (outcome,) = prediction.run(send)
    if outcome.error is not None:
        raise outcome.error
    record = CaseRecords(output).get(LABEL_MAP)
    assert record is not None
    assert record.prediction is not None
    assert record.prediction.output is not None
    predictors = models.predictors
    write_prediction_report(
        task.folder / REPORT, cases, outputs, predictors[0].labels, models=[repr(one) for one in predictors]
    )
    return Finished(record.prediction.output.hash, outcome.notes)


def _only_case(cases: Sequence[NamedCase], upload: str) -> list[NamedCase]:
    if len(cases) != 1:
        raise DataError(
            f"{'archive' if upload.endswith(ARCHIVE) else upload}: found {pluralise(len(cases), 'image')}, expected one. Send each in an "
            "archive of its own."
        )
    return [(LABEL_MAP, replace(cases[0][1], id=LABEL_MAP))]


def _throttled(send: Callable[[Answer], None]) -> Callable[[int, int, str], None]:
    """Return a `Progress` that sends a few messages per second, and the last one."""
    last = 0.0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _BETWEEN:
            last = now
            send(Advance(done, total))

    return progress


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect the warnings about files, which come from several threads, instead of showing them."""
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)

        def keep(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if issubclass(category, DataWarning):
                notes.append(str(message))

        warnings.showwarning = keep
        yield notes
