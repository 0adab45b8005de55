"""The HTML page and the comments of a plan, with hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import yaml

from medseg.planning.commented_yaml import Explained, render_yaml
from medseg.planning.page.plan_page import write_page
from medseg.planning.plan_dataset import _heading, plan

pytestmark = pytest.mark.slow


class _Inert(HTMLParser):
    """Collects tags and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


EVIL = "<script>alert(1)</script>\"'&\u202e\x1b[31m $x$ 漢字"


def test_page_has_no_scripts_and_loads_nothing(phantoms, cache, tmp_path):
    made = plan(phantoms, cache=cache)
    labels = {EVIL if name == "liver" else name: value for name, value in made.fingerprint.labels.items()}
    finding = {"code": "odd", "text": EVIL, "cases": ["a", "b"]}
    evil = made.fingerprint.replace(dataset=EVIL, channel_names=(EVIL,), labels=labels, findings=(finding,))
    path = tmp_path / "page.html"
    write_page(evil, path, made.proposal, made.experiment)
    page = _Inert()
    page.feed(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert {"img", "table", "figure", "details"} <= set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert (tag, value[:22]) == ("img", "data:image/png;base64,")
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text  # shown, not run
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert page.tags.count("img") == 4
    assert "unet_3d, 3D, full resolution, preset unet" in text


def test_hostile_names_stay_inside_comments(phantoms, cache):
    made = plan(phantoms, cache=cache)
    text = render_yaml(
        "first\x85line\u2028evil: 1", {"a": Explained(1, "why\u2028b: 2"), "c": {"d": Explained([1], EVIL)}}
    )
    assert yaml.safe_load(text) == {"a": 1, "c": {"d": [1]}}
    heading = _heading(made.fingerprint.replace(dataset="x\nname: evil\x00"), made.proposal, None)
    assert yaml.safe_load(render_yaml(heading, {"a": Explained(1)})) == {"a": 1}


def test_page_of_many_labels_is_complete(make_fingerprint, tmp_path):
    crowded = make_fingerprint(labels=60, count=3)
    path = tmp_path / "page.html"
    write_page(crowded, path)
    assert path.stat().st_size > 30_000
    assert len(re.findall(r"<tr>", path.read_text())) > 59
