"""What a report says of many labels."""

from __future__ import annotations

import math

from medseg.train.reports import Report


def report(dice: dict[str, float]) -> Report:
    return Report(
        step=1,
        steps=2,
        loss=1.0,
        parts={},
        lr=0.1,
        seconds_per_step=1.0,
        samples_per_second=1.0,
        stall=0.0,
        val_dice=dice,
        seconds=1.0,
    )


def test_of_few_labels_all_are_told_and_of_many_the_lowest():
    assert str(report({"liver": 0.5, "spleen": 0.25})).endswith(
        "patch Dice 0.375 (liver 0.500, spleen 0.250)"
    )
    many = {f"organ {i}": i / 100 for i in range(50)} | {"absent": math.nan}
    text = str(report(many))
    assert "(50 labels seen; organ 0 0.000, organ 1 0.010," in text
    assert "absent" not in text
    assert len(text) < 250
