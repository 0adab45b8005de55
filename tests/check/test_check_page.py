from __future__ import annotations

import re
from pathlib import Path

import pytest

from medseg.check.check_page import write_page
from medseg.check.check_report import Report
from medseg.check.finding import Finding
from medseg.cli.main import main
from tests.helpers.planted_faults import label_file, name, write_clean


def test_the_page_shows_each_case_with_those_with_findings_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_clean(tmp_path / "set", cases=5)
    (root / label_file(3)).unlink()
    page = tmp_path / "page.html"
    assert main(["check", str(root), "--html", str(page)]) == 2
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"<figcaption><b>(\w+)</b>", text)
    assert shown == [name(3), name(0), name(1), name(2), name(4)]
    assert text.count("data:image/png;base64,iVBOR") == 5
    assert "LABEL_MISSING" in text


def test_the_page_requests_nothing_and_escapes_names(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src="http://example.org/x.png">'
    write_page(Report(evil, (Finding("LABEL_EMPTY", evil, evil, evil, case=evil),)), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
