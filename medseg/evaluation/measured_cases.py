"""Evaluation of many cases, in this process or on a Dask cluster; a case that cannot be evaluated does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from medseg.cluster.dask_cluster import connected
from medseg.cluster.dask_tasks import map_on_cluster
from medseg.errors import DataError, ResourceError
from medseg.evaluation.instances.instance_options import DEFAULT_INSTANCE_OPTIONS, InstanceOptions
from medseg.evaluation.instances.pairs import InstancePair, evaluate_instance_cases
from medseg.evaluation.label_maps.evaluate_cases import evaluate_cases
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, MetricOptions
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.pairs import Pair
from medseg.labels.label_table import Labels
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason

_Pair = TypeVar("_Pair")
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
) -> Generator[tuple[int, _Rows | DataError | ResourceError], None, None]:
    """Evaluate cases.

    Args:
        pairs: Predictions and references.
        measure: Returns the rows of a case, such as `LabelMapEvaluator`.
        cluster: Dask cluster to evaluate on, see `connected`; its workers need the files under the same paths. None for
            this process.

    Yields:
        The position of the case in `pairs`, and its rows or the reason why it could not be evaluated; in order without a
        cluster.

    Raises:
        ConfigError: The cluster is described wrongly.
        ResourceError: The cluster cannot be reached, or the connection was lost.
    """
    attempt = _Attempt(measure)
    if cluster is None:
        yield from ((index, attempt((index, pair))) for index, pair in enumerate(pairs))
        return
    with connected(cluster) as client:
        for (index, _), result in map_on_cluster(client, attempt, enumerate(pairs)):
            yield index, result


@dataclass(frozen=True)
class _Attempt(Generic[_Pair, _Rows]):
    """A function that evaluates a case and returns its error instead of raising it."""

    measure: Callable[[_Pair], _Rows]

    def __call__(self, item: tuple[int, _Pair]) -> _Rows | DataError | ResourceError:
        try:
            return self.measure(item[1])
        except DataError as error:
            return error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            name = getattr(item[1], "case", "") or "evaluate"
            return ResourceError(
                f"{name}: found too little memory ({out_of_memory_reason(error)}), expected enough for its distance maps. Free memory, or "
                "take a larger machine."
            )
