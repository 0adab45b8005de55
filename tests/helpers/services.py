"""A toy model folder, and services in this process, without a process of their own for predictions."""

from __future__ import annotations

import io
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.testclient import TestClient

import medseg
from medseg.io.dicomweb.server import DicomWeb
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.serve.event_log import EventLog
from medseg.serve.job_queue import Worker
from medseg.serve.service import Service
from medseg.serve.settings import ModelSettings, ServiceSettings
from medseg.serve.tokens import Tokens
from medseg.serve.web.app import create_app
from medseg.serve.worker.messages import Advance, Answer, Failed, Finished, ModelInfo, Task
from medseg.serve.worker.model_worker import Stopped
from medseg.serve.worker.predict_job import load_models, model_info, predict_job

ALICE, BOB = "token-of-alice-0123456789", "token-of-bob-0123456789"
LABELS = Labels.from_names({"background": 0, "liver": 5, "spleen": 7})


def save_toy_model(
    folder: Path, *, name: str = "toy", channels: int = 1, labels: Labels = LABELS, **more: object
) -> Path:
    """Write the model folder of a network with some hundred weights."""
    options = {"channels": [4, 8], "num_blocks": 1}
    torch.manual_seed(3)
    model = build_model("unet_3d", in_channels=channels, num_classes=labels.num_outputs, **options)
    values: dict[str, Any] = {
        "medseg": "0",
        "name": name,
        "model": {"name": "unet_3d", **options},
        "channel_names": [f"channel {index}" for index in range(channels)],
        "preprocessing": {"channels": [{"method": "zscore"}] * channels},
        "window": (8, 8, 8),
        "predict": {"precision": "float32"},
        **more,
    }
    save_model(folder, model, SavedModel.parse(values), labels)
    return folder


def image_bytes(folder: Path, seed: int = 0, name: str = "ct.nii.gz") -> bytes:
    """Return a small image as the bytes of a file."""
    data = np.random.default_rng(seed).normal(size=(1, 12, 10, 8)).astype(np.float32)
    medseg.write(medseg.Volume(data, medseg.Grid.from_spacing((12, 10, 8), (1, 1, 2))), folder / name)
    return (folder / name).read_bytes()


class InlineWorker:
    """What predicts in the thread of the queue, with the code of the prediction process."""

    def __init__(self, *folders: Path) -> None:
        self.models: tuple[ModelInfo, ...] = ()
        self.is_running = False
        self._settings = ModelSettings(tuple(map(str, folders)), device="cpu")

    def start(self, stopped: Callable[[], bool]) -> None:
        self._loaded = load_models(self._settings)
        self.models = tuple(model_info(name, one) for name, one in self._loaded.items())
        self.is_running = True

    def predict(
        self, task: Task, timeout: float, stopped: Callable[[], bool], progress: Callable[[int, int], None]
    ) -> Finished | Failed:
        def send(answer: Answer) -> None:
            if isinstance(answer, Advance):
                progress(answer.done, answer.total)

        return predict_job(self._loaded[task.model], task, send)

    def stop(self) -> str:
        self.is_running = False
        return "with exit code 0"


class HeldWorker:
    """What predicts nothing: each task waits until a test answers it, or is stopped."""

    models = (ModelInfo("toy", ("CT",), (), "a toy", "0"),)

    def __init__(self) -> None:
        self.is_running = False
        self.begun: queue.Queue[Task] = queue.Queue()
        self.answers: queue.Queue[Finished | Failed] = queue.Queue()
        self.starts = 0

    def start(self, stopped: Callable[[], bool]) -> None:
        self.is_running = True
        self.starts += 1

    def predict(
        self, task: Task, timeout: float, stopped: Callable[[], bool], progress: Callable[[int, int], None]
    ) -> Finished | Failed:
        progress(1, 4)
        self.begun.put(task)
        while not stopped():
            try:
                answer = self.answers.get(timeout=0.02)
            except queue.Empty:
                continue
            self.is_running = not isinstance(answer, Failed)
            return answer
        self.is_running = False
        raise Stopped

    def stop(self) -> str:
        self.is_running = False
        return "with signal 9"


@dataclass
class Running:
    """A running service and a client with the token of Alice."""

    service: Service
    client: TestClient
    log: io.StringIO
    folder: Path

    def post(self, content: bytes, name: str = "ct.nii.gz", token: str = ALICE, **fields: str) -> Any:
        return self.client.post(
            "/api/jobs", files={"file": (name, content)}, data=fields, headers=bearer(token)
        )

    def finished(self, job_id: str, token: str = ALICE) -> dict[str, Any]:
        """Follow the events of a job to its end and return it."""
        events = self.client.get(f"/api/jobs/{job_id}/events", headers=bearer(token)).text
        assert "event: job" in events
        return dict(self.client.get(f"/api/jobs/{job_id}", headers=bearer(token)).json())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def running(
    folder: Path,
    *models: Path,
    worker: Worker | None = None,
    start: bool = True,
    dicomweb: DicomWeb | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A service in this process; the worker predicts in the thread of the queue unless another one is given."""
    log = io.StringIO()
    service = Service(
        ServiceSettings(folder, **settings),
        Tokens([ALICE, BOB]),
        worker or InlineWorker(*models),
        EventLog(log),
        dicomweb,
    )
    client = TestClient(create_app(service), headers=bearer(ALICE))
    if start:
        service.start()
    try:
        yield Running(service, client, log, folder)
    finally:
        service.stop()
