from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.helpers.combinations import covering


@pytest.mark.parametrize("together", [1, 2, 3])
def test_any_few_options_take_all_their_values(together: int) -> None:
    options = ("ab", "cde", "fghij", "kl", "mno")
    found = covering(*options, together=together)
    for chosen in combinations(range(len(options)), together):
        wanted = set(product(*(options[i] for i in chosen)))
        assert {tuple(one[i] for i in chosen) for one in found} == wanted
    assert len(found) < 180 / 2
    assert found == covering(*options, together=together)
