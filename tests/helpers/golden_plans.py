"""The golden plans as this package's types."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from medseg.planning.nnunet.configurations import DatasetMeasures

HERE = Path(__file__).parents[1] / "planning" / "nnunet"
PLANS = json.loads((HERE / "planner_golden.json").read_text())
HIPPOCAMPUS = json.loads((HERE / "hippocampus_golden.json").read_text())
DATASETS: dict[str, dict[str, Any]] = {dataset["name"]: dataset for dataset in PLANS["datasets"]}


def measures(values: dict[str, Any]) -> DatasetMeasures:
    """The measures that a golden plan was made from."""
    target = values.get("overwrite_target_spacing")
    return DatasetMeasures(
        tuple(tuple(spacing) for count, spacing, _ in values["cases"] for _ in range(count)),
        tuple(tuple(shape) for count, _, shape in values["cases"] for _ in range(count)),
        values["num_labels"],
        tuple(target) if target else None,
    )


def as_lists(value: Any) -> Any:
    """Tuples as JSON has them."""
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def close(found: Any, expected: Any) -> bool:
    """Equal to twelve digits."""
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=1e-12) for a, b in zip(found, expected, strict=True)
    )
