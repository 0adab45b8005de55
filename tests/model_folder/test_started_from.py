"""The table of what was taken."""

from __future__ import annotations

from medseg.model_folder.started_from import StartedFrom, TransferRow


def record(left: int) -> StartedFrom:
    rows = [TransferRow(part="output", here="person", source="person", result="taken")]
    rows += [TransferRow(part="output", here="", source=f"class {n}", result="left") for n in range(left)]
    rows += [TransferRow(part="tensors", here="", source="pixel_mean", result="left")]
    return StartedFrom(source="zoo", rows=tuple(rows))


def test_many_outputs_that_are_left_are_one_line():
    lines = [" ".join(line.split()) for line in str(record(left=79)).splitlines()]
    assert lines == [
        "weights from zoo",
        "part here source result note",
        "output person person taken -",
        "output - class 0 and 78 more left -",
        "tensors - pixel_mean left -",
    ]
    assert len(record(left=79).rows) == 81  # the record has all of them


def test_few_outputs_that_are_left_are_listed():
    assert [f"class {n}" in str(record(left=12)) for n in range(13)] == [True] * 12 + [False]
