"""The normalisation of a channel follows from its name, in training and in plans alike."""

from __future__ import annotations

import pytest

from medseg.data.preprocessing.channel_methods import resolve_methods
from medseg.errors import DataError
from medseg.planning.nnunet.configurations import normalization_schemes


def test_methods_are_resolved_by_channel_name():
    assert resolve_methods("auto", ["CT", "PET", " ct "]) == ("ct", "zscore", "ct")
    assert resolve_methods("rescale", ["a", "b"]) == ("rescale", "rescale")
    assert resolve_methods(("none", "auto"), ["CT", "CT"]) == ("none", "ct")
    with pytest.raises(DataError, match=r"found 2 methods, expected 1, one per channel \(CT\)"):
        resolve_methods(("none", "auto"), ["CT"])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("CT", "ct"), ("CT ", "ct"), ("zscore", "zscore"), ("noNorm", "none"), ("rescale_to_0_1", "rescale"),
        ("rgb_to_0_1", "rgb"), ("T1w", "zscore"), ("CT scan", "zscore"),
    ],
)  # fmt: skip
def test_training_and_plans_choose_the_same_method(name, method):
    assert resolve_methods("auto", [name]) == (method,)
    assert normalization_schemes([name], 1.0)[0] == (method,)
