from __future__ import annotations

import re

from medseg.check.codes import KINDS, SEVERITIES, codes_table
from tests.helpers.paths import ROOT


def test_the_documentation_lists_every_code_as_the_table_does() -> None:
    page = (ROOT / "docs" / "guides" / "check.md").read_text(encoding="utf-8")
    assert codes_table() in page


def test_codes_have_every_text() -> None:
    for kind in KINDS.values():
        assert re.fullmatch("[A-Z]+(_[A-Z]+)+", kind.code)
        assert kind.severity in SEVERITIES
        assert kind.meaning
        assert kind.expected
        assert kind.remedy.endswith(".")


def test_every_code_is_used() -> None:
    source = "".join(path.read_text() for path in (ROOT / "medseg" / "check").rglob("*.py"))
    without_table = source.replace((ROOT / "medseg/check/codes.py").read_text(), "")
    built = {f"{what}_{kind}_DIFFERS" for what in ("SHAPE", "GRID") for kind in ("CHANNEL", "LABEL")}
    unused = [code for code in KINDS if f'"{code}"' not in without_table and code not in built]
    assert unused == []
