"""Parts of a list for job arrays."""

from __future__ import annotations

import pytest

from medseg.cluster.parts import Part
from medseg.errors import ConfigError


@pytest.mark.parametrize("count", [1, 3, 4, 12])
def test_parts_contain_every_item_once_and_are_of_similar_length(count):
    items = list(range(10))
    parts = [Part(index, count).of(items) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [Part.parse(f" {index}/{count}").of(items) for index in range(1, count + 1)]


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match=r"expected I/N with I from 1 to N"):
        Part.parse(text)
