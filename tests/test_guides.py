"""The examples of the guides that add a part: their files, in a package outside medseg, pass the tests that they show."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.helpers.children import start_program
from tests.helpers.paths import ROOT

_FILE = re.compile(r"^```python\n# (\S+\.py).*?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["add_a_model", "add_a_layout", "add_a_loss"])
def test_the_files_of_a_guide_pass_its_tests(guide: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / f"{guide}.md").read_text(encoding="utf-8")
    files = dict(_FILE.findall(page))
    assert any(name.startswith("tests/") for name in files)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = (
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "tests",
    )
    done = start_program(*command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, errors_in_output=True)
    printed, _ = done.communicate(300)
    assert done.returncode == 0, printed
