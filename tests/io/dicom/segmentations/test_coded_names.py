"""Codes of SNOMED CT for names of labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.io.dicom.segmentations.coded_names import coded_name
from medseg.storage.tsv import read_tsv
from tests.helpers.paths import SHARED_FOLDER

TABLE = Path(__file__).parents[4] / "medseg" / "io" / "dicom" / "segmentations" / "coded_names.tsv"


@pytest.mark.parametrize(
    ("name", "kind", "side", "region"),
    [
        ("liver", "10200004", None, None),
        ("Left Kidney", "64033007", "Left", None),
        ("kidneyRight", "64033007", "Right", None),
        ("rib_left_11", "58830002", "Left", None),
        ("vertebrae_C1", "14806007", None, None),
        ("lung_middle_lobe_right", "72481006", None, None),
        ("heart_atrium_left", "82471001", None, None),
        ("kidney_cyst_left", "367643001", "Left", "64033007"),
        ("pancreas tumor", "108369006", None, "15776009"),
        ("brain haemorrhage", "50960005", None, "12738006"),
        ("edema", "79654002", None, None),
        ("Hippocampus", "5366008", None, None),
    ],
)
def test_names_in_every_spelling(name: str, kind: str, side: str | None, region: str | None) -> None:
    found = coded_name(name)
    assert (found.type.value, found.type.scheme) == (kind, "SCT")
    assert (found.side.meaning if found.side else None) == side
    assert (found.region.value if found.region else None) == region


@pytest.mark.parametrize("name", ["gizmo", "left right kidney", "spleen liver tumour", "左腎", ""])
def test_other_names_have_private_codes(name: str) -> None:
    found = coded_name(name)
    assert not found.known
    assert (found.type.scheme, found.type.meaning) == ("99MEDSEG", name)
    assert len(found.type.value) == 16


def test_table_agrees_with_the_dictionary_of_the_standard() -> None:
    concepts = pytest.importorskip("pydicom.sr._concepts_dict").concepts["SCT"]
    known = {code for entries in concepts.values() for code in entries}
    rows = read_tsv(TABLE).rows
    assert sum(row.cells["code"] in known for row in rows) >= 135
    assert len({row.cells["meaning"] for row in rows}) == len(rows)


def test_every_name_of_a_large_label_set_has_a_code() -> None:
    table = SHARED_FOLDER / "data" / "ct_torso" / "labels.tsv"
    if not table.is_file():
        pytest.skip("the torso CT is not there")
    names = [row.cells["name"] for row in read_tsv(table).rows[1:]]
    assert len(names) == 117
    assert [name for name in names if not coded_name(name).known] == []
