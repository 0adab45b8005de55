from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.serve.settings import default_folder, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), (" 2M ", 120), ("0.5h", 1800), ("7d", 604800)])
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text, "--keep") == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "24", "-1h", "0s", "1e3s", "nanh", "infd", "1.2.3h", "٣h", "9" * 400 + "s"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--keep: found .* such as 24h"):
        parse_duration(text, "--keep")


def test_jobs_are_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(default_folder()) == "/somewhere/medseg/serve"
