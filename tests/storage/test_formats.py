"""A file of another format is refused by name."""

from __future__ import annotations

import pytest

from medseg.errors import DataError, ModelError
from medseg.storage.formats import check_format


def test_same_format_is_accepted():
    check_format(2, 2, "x.json", "splits")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            3,
            r"x\.json: format: found 3, expected 2, because a newer medseg wrote this file \(splits\)\. Update medseg\.",
        ),
        (
            1,
            r"x\.json: format: found 1, expected 2, because an older medseg wrote this file \(splits\)\. Create it again\.",
        ),
        (None, r"x\.json: format: found None, expected 2"),
        ("2", r"x\.json: format: found '2', expected 2"),
        (True, r"x\.json: format: found True, expected 2"),
        (2.0, r"x\.json: format: found 2\.0, expected 2"),
    ],
)
def test_other_format_raises(found, message):
    with pytest.raises(DataError, match=message):
        check_format(found, 2, "x.json", "splits")


def test_error_class_can_be_chosen():
    with pytest.raises(ModelError):
        check_format(3, 2, "x", "model folder", error=ModelError)
