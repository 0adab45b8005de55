"""The prediction process: it loads the models once, predicts one job after the other, and is replaced if it ends or hangs."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from medseg.errors import MedsegError, ModelError
from medseg.runtime.worker_process import call_received, warns_in_one_line
from medseg.serve.job import Failure
from medseg.serve.settings import ModelSettings
from medseg.serve.worker.messages import Advance, Answer, Failed, Finished, ModelInfo, Task

_TICK = 0.1  # seconds between two looks at what could stop a prediction
_PATIENCE = 3.0  # seconds for the process to remove unfinished files before it is killed


class Stopped(Exception):
    """A prediction was stopped because it is not wanted any more, or the service ends."""


class ModelWorker:
    """A process with the models of the service.

    On Linux it ends with the thread that started it.

    Args:
        models: The models.

    Attributes:
        models: What was loaded; empty before `start`.
    """

    def __init__(self, models: ModelSettings) -> None:
        self.models: tuple[ModelInfo, ...] = ()
        self._settings = models
        self._connection: Connection[Any, Any] | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process runs and has loaded its models."""
        return self._connection is not None

    def start(self, stopped: Callable[[], bool]) -> None:
        """Start the process and wait until it has loaded the models.

        Args:
            stopped: Returns whether to give up.

        Raises:
            ModelError: A model cannot be loaded, or the process has ended.
            Stopped: `stopped` returned True.
        """
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        connection, other = context.Pipe()
        self._process = context.Process(target=call_received, args=(other, warns_in_one_line()), daemon=True)
        self._process.start()
        other.close()  # so that the end of the process is the end of the connection
        self._connection = connection
        try:
            connection.send(partial(serve_models, self._settings))
            answer = self._answer(stopped, None)
        except OSError:  # ended before the models were named
            answer = None
        if isinstance(answer, Failed):
            self.stop()
            raise ModelError(answer.message)
        if not isinstance(answer, tuple):
            raise ModelError(
                f"models: the process that loads them ended {self.stop()}, expected it to run. Signal 9 is often a lack of memory."
            )
        self.models = answer

    def predict(
        self,
        task: Task,
        timeout: float,
        stopped: Callable[[], bool],
        progress: Callable[[int, int], None],
    ) -> Finished | Failed:
        """Predict a job; after a failure of the process it has to be started again.

        Args:
            task: The prediction.
            timeout: Seconds that it may take.
            stopped: Returns whether to stop; called several times per second.
            progress: Called with the windows that are done and their number.

        Returns:
            What became of it.

        Raises:
            Stopped: `stopped` returned True; the process has ended then.
        """
        assert self._connection is not None, "start the process first"
        end = time.monotonic() + timeout
        try:
            self._connection.send(task)
            while isinstance(answer := self._answer(stopped, end), Advance):
                progress(answer.done, answer.total)
        except TimeoutError:
            self.stop()
            return Failed(
                Failure.TIMEOUT,
                f"the prediction was stopped after {timeout:.0f} seconds, the limit of the service. Send a smaller image, or ask the administrator of the service.",
            )
        except OSError:
            answer = None
        if isinstance(answer, (Finished, Failed)):
            return answer
        return Failed(
            Failure.CRASHED,
            f"the prediction process ended {self.stop()}. Signal 9 is often a lack of memory. Ask the administrator of the service.",
        )

    def stop(self) -> str:
        """End the process.

        Returns:
            How it ended.
        """
        process, self._process, connection, self._connection = self._process, None, self._connection, None
        if connection is not None:
            connection.close()
        if process is None:
            return "before"
        process.terminate()
        process.join(_PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode or 0
        return f"with signal {-code}" if code < 0 else f"with exit code {code}"

    def _answer(self, stopped: Callable[[], bool], end: float | None) -> Any:
        """Wait for the next message; return None if the process has ended."""
        assert self._connection is not None
        while True:
            if stopped():
                self.stop()
                raise Stopped
            if end is not None and time.monotonic() > end:
                raise TimeoutError
            if self._connection.poll(_TICK):
                break
        try:
            return self._connection.recv()
        except EOFError:
            return None


def serve_models(models: ModelSettings, connection: Connection[Any, Any]) -> None:
    """Load models, name them, and predict the tasks that come through a connection, until it is closed.

    Args:
        models: The models.
        connection: Connection to the service.
    """
    from medseg.serve.worker.predict_job import load_models, model_info, place_of, predict_job

    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that unfinished files are removed
    try:
        loaded = load_models(models)
    except MedsegError as error:
        connection.send(Failed(Failure.REFUSED, str(error)))
        return
    except Exception as error:
        connection.send(Failed(Failure.INTERNAL, f"models: cannot be loaded ({place_of(error)})."))
        return
    connection.send(tuple(model_info(model_id, one) for model_id, one in loaded.items()))
    send: Callable[[Answer], None] = connection.send
    while True:
        try:
            task = connection.recv()
            send(predict_job(loaded[task.model], task, send))
        except (EOFError, OSError):  # the service has ended
            if multiprocessing.parent_process() is not None:
                signal.signal(
                    signal.SIGTERM, signal.SIG_IGN
                )  # it follows, and would interrupt the end of libraries
            return
