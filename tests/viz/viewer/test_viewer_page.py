from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.viz.viewer import viewer_page as module
from medseg.viz.viewer.viewer_case import ViewerCase
from medseg.viz.viewer.viewer_page import viewer_page, write_viewer
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

GRID = Grid.from_spacing((6, 5, 4))
IMAGE = Volume(np.arange(120, dtype=np.int16).reshape(1, 6, 5, 4), GRID)
LABELS = Volume((IMAGE.data > 60).astype(np.uint8), GRID, "label")
EVIL = '</script><script>alert("x")</script>'


def test_names_cannot_become_code() -> None:
    case = ViewerCase(EVIL, IMAGE, {"labels": LABELS}, Labels.from_names({EVIL: 1}), notes=(EVIL,))
    page = viewer_page([case], title=EVIL)
    assert "<script>alert" not in page
    embedded = re.search(r'<script type="application/json" id="case-0">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1])["labels"][0]["name"] == EVIL


def test_only_the_two_scripts_of_the_viewer_are_admitted_and_nothing_is_loaded() -> None:
    page = viewer_page([ViewerCase("a", IMAGE)])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    folder = Path(module.__file__).parent
    for name in ("viewer.js", "niivue.umd.js"):
        digest = hashlib.sha256((folder / name).read_bytes()).digest()
        assert f"sha256-{base64.b64encode(digest).decode()}" in policy[1]
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?://", outside)


def test_niivue_is_the_published_file() -> None:
    content = (Path(module.__file__).parent / "niivue.umd.js").read_bytes()
    assert (
        hashlib.sha256(content).hexdigest()
        == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    )


def test_the_page_is_written_whole_and_within_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Volume(
        rng.integers(-1000, 1000, (1, 96, 96, 96)).astype(np.int16), Grid.from_spacing((96, 96, 96))
    )
    write_viewer(tmp_path / "a.html", [ViewerCase("a", noise), ViewerCase("b", noise)], max_bytes=2_000_000)
    assert 1_000_000 < (tmp_path / "a.html").stat().st_size < 2_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_no_case_is_refused() -> None:
    with pytest.raises(DataError, match="found no case"):
        viewer_page([])
