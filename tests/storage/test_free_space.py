from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medseg.errors import DiskFullError
from medseg.storage.free_space import require_space


def test_what_fits_passes_and_what_does_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=5_000_000))
    require_space(tmp_path / "new" / "folder", 5_000_000, "a test")
    with pytest.raises(
        DiskFullError, match=r"free space: found 5 MB, expected at least 6 MB for a test\. Free"
    ) as caught:
        require_space(tmp_path / "new", 6_000_000, "a test")
    assert caught.value.exit_code == 4
