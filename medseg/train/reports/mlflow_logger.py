"""A logger for MLflow that writes to a local folder, without a server and without the network.

The figures go to ``mlruns`` next to the run folder, so that the runs of one folder can be compared::

    MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri runs/mlruns
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import ConfigError
from medseg.train.reports.reporting import Report

if TYPE_CHECKING:
    from medseg.train.reports.loggers import State

FOLDER = "mlruns"
_RUN_TAG = "medseg.run"
_MOST_CHARACTERS = 500  # of a parameter
_MOST_PARAMETERS = 100  # in one call
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# No telemetry; and folders of files, which MLflow 3 refuses otherwise: mlflow-skinny has no other local store.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


class MLflowLogger:
    """The logger ``mlflow``: parameters, metrics and the state of a run; needs ``pip install medseg[mlflow]``."""

    def __init__(self) -> None:  # pragma: extra
        os.environ.update(_ENVIRONMENT)  # MLflow reads them when it is imported
        try:
            import mlflow.tracking as tracking
        except ImportError as error:
            raise ConfigError(
                "train.loggers: found mlflow, which is not installed, expected the extra. Install it with: pip install medseg[mlflow]."
            ) from error
        self._tracking = tracking

    def start(self, run: Path, settings: Mapping[str, Any]) -> None:  # pragma: extra
        """Create the run in MLflow, or continue it if the training is resumed.

        Args:
            run: Run folder; its parent gets the folder ``mlruns``, and its name is that of the run.
            settings: Settings of the experiment, logged as parameters.
        """
        run = run.resolve()
        client = self._tracking.MlflowClient(tracking_uri=(run.parent / FOLDER).as_uri())
        experiment = (
            client.get_experiment_by_name(run.parent.name) if (run.parent / FOLDER).is_dir() else None
        )
        identity = (
            experiment.experiment_id if experiment else client.create_experiment(run.parent.name or "runs")
        )
        known = client.search_runs(
            [identity], filter_string=f"tags.`{_RUN_TAG}` = '{_tag_value(run.name)}'", max_results=1
        )
        self._client = client
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        self._id = client.create_run(
            identity, tags={_RUN_TAG: _tag_value(run.name)}, run_name=run.name
        ).info.run_id
        parameters = list(_flat(settings).items())
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            part = parameters[start : start + _MOST_PARAMETERS]
            client.log_batch(self._id, params=[_param(key, value) for key, value in part])

    def log(self, report: Report) -> None:  # pragma: extra
        """Log the figures of a report as metrics of its step.

        Args:
            report: The report.
        """
        from mlflow.entities import Metric

        figures = {
            "train/loss": report.loss,
            "train/lr": report.lr,
            "time/seconds_per_step": report.seconds_per_step,
            "time/data_wait_fraction": report.data_wait_fraction,
            **{f"loss/{_metric_name(name)}": value for name, value in report.loss_terms.items()},
            **{f"validation/dice_{_metric_name(name)}": value for name, value in report.val_dice.items()},
        }
        if report.mean_dice is not None:
            figures["validation/dice_mean"] = report.mean_dice
        now = round(1000 * report.seconds)
        metrics = [
            Metric(name, value, now, report.step) for name, value in figures.items() if math.isfinite(value)
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, state: State) -> None:  # pragma: extra
        """End the run with MLflow's name of the state.

        Args:
            state: How the training ended.
        """
        self._client.set_terminated(self._id, status=_STATUS[state])


def _tag_value(name: str) -> str:
    """Return the name of a run as a value that a filter of MLflow can hold, which knows no escape for quotation marks."""
    return name.replace("%", "%25").replace("'", "%27")


def _param(key: str, value: Any) -> Any:
    from mlflow.entities import Param

    return Param(key, str(value)[:_MOST_CHARACTERS])


def _metric_name(name: str) -> str:
    """Return a label's name with the characters that MLflow accepts in names of metrics."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{_metric_name(str(key))}"] = value
    return found
