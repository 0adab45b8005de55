from __future__ import annotations

import pytest

from medseg.storage.stamps import short_hash


def test_the_order_of_keys_does_not_matter() -> None:
    assert short_hash({"a": 1, "b": [2, None]}) == short_hash({"b": [2, None], "a": 1})
    assert len(short_hash([])) == 16


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, [1], {"a": "1"}, {"a": [1]}, None])
def test_any_other_value_has_another_hash(other: object) -> None:
    assert short_hash(other) != short_hash({"a": 1})
