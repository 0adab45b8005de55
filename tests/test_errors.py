from __future__ import annotations

import pytest

from medseg.errors import ConfigError, DataError, MedsegError, ModelError, did_you_mean, error_message


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_kinds_are_medseg_errors_and_print_as_their_message(kind: type[MedsegError]) -> None:
    assert issubclass(kind, MedsegError)
    assert str(kind("ct.nii.gz: damaged. Copy it.")) == "ct.nii.gz: damaged. Copy it."


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        (None, None, "ct.nii: dim: wrong. Check it."),
        (3, None, "ct.nii: dim: wrong: found 3. Check it."),
        (None, 2, "ct.nii: dim: wrong: expected 2. Check it."),
        (0, 2, "ct.nii: dim: wrong: found 0, expected 2. Check it."),
    ],
)
@pytest.mark.parametrize("fix", ["Check it", "Check it."])
def test_describe_joins_where_what_values_and_fix(
    found: object, expected: object, text: str, fix: str
) -> None:
    assert error_message("ct.nii: dim", "wrong", found=found, expected=expected, fix=fix) == text


def test_nearest_word() -> None:
    assert did_you_mean("lerning_rate", ["batch_size", "learning_rate"]) == " Did you mean 'learning_rate'?"
    assert did_you_mean("xyz", ["batch_size", "learning_rate"]) == ""
    assert did_you_mean("xyz", []) == ""
