"""Evaluation of many cases, in this process or on a Dask cluster; a case that cannot be evaluated does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from medseg.cluster.case_map import CaseExecutor
from medseg.errors import MedsegError
from medseg.evaluation.instances.instance_options import DEFAULT_INSTANCE_OPTIONS, InstanceOptions
from medseg.evaluation.instances.pairs import InstancePair, evaluate_instance_cases
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, MetricOptions
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.pairs import Pair
from medseg.labels.label_table import Labels

_Pair = TypeVar("_Pair", bound=Pair | InstancePair)
_Rows = TypeVar("_Rows")


@dataclass(frozen=True)
class LabelMapEvaluator:
    """A function that evaluates the label map of one case; picklable, so that workers can run it.

    Attributes:
        labels: Names of the values; None names each value that occurs.
        options: Metrics to compute, and the conventions for them.
    """

    labels: Labels | None
    options: MetricOptions = DEFAULT_OPTIONS

    def __call__(self, pair: Pair) -> list[LabelMetrics]:
        """Return the rows of a case."""
        return next(evaluate_cases([pair], self.labels, self.options))


@dataclass(frozen=True)
class InstanceEvaluator:
    """A function that evaluates the instances of one case; picklable, so that workers can run it.

    Attributes:
        labels: Names of the classes; None names them by their values.
        options: How instances are matched, and the size classes in which they are counted.
    """

    labels: Labels | None
    options: InstanceOptions = DEFAULT_INSTANCE_OPTIONS

    def __call__(self, pair: InstancePair) -> list[Any]:
        """Return the rows of a case."""
        return next(evaluate_instance_cases([pair], self.labels, self.options))


def measured_cases(
    pairs: Sequence[_Pair], measure: Callable[[_Pair], _Rows], cluster: str | None = None
) -> Generator[tuple[int, _Rows | MedsegError], None, None]:
    """Evaluate cases.

    Args:
        pairs: Predictions and references.
        measure: Returns the rows of a case, such as `LabelMapEvaluator`.
        cluster: Dask cluster to evaluate on, see `medseg.cluster.dask_cluster.connected`; its workers need the files under the
            same paths. None for this process.

    Yields:
        The position of the case in `pairs`, and its rows or the reason why it could not be evaluated; in order without a
        cluster.

    Raises:
        ConfigError: The cluster is described wrongly.
        ResourceError: The cluster cannot be reached, or the connection was lost.
    """
    names = [pair.case or "evaluate" for pair in pairs]
    yield from CaseExecutor(cluster=cluster).outcomes(measure, pairs, names, files=[])
