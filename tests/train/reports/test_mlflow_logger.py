"""Values that filters of MLflow can hold."""

from __future__ import annotations

import pytest

from medseg.train.reports.mlflow_logger import _tag_value


@pytest.mark.parametrize("name", ["liver", "Léas Läufe", "run 1"])
def test_ordinary_names_of_runs_are_tags_without_change(name):
    assert _tag_value(name) == name


def test_names_with_quotation_marks_stay_different():
    names = ["ada's run", "ada%27s run", "adas run"]
    assert len({_tag_value(name) for name in names}) == 3
    assert not any("'" in _tag_value(name) for name in names)
