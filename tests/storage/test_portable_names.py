from __future__ import annotations

import pytest

from medseg.storage.portable_names import folded, name_fault, portable_name


@pytest.mark.parametrize(
    "name",
    [
        "ct.nii.gz",
        ".hidden",
        "患者甲",
        "Müller 2",
        "context",
        "com0",
        "com10",
        "console.txt",
        "nul_",
        "-",
        "a\u200cb",
    ],
)
def test_names_that_every_system_allows_are_unchanged(name: str) -> None:
    assert name_fault(name) is None
    assert portable_name(name) == name


@pytest.mark.parametrize(
    ("name", "fault", "repaired"),
    [
        ("a:b", "the character :", "a_b"),
        ("a/b", "the character /", "a_b"),
        ("what?", "the character ?", "what_"),
        ("a\tb", "control or invisible characters", "a_b"),
        ("a\u202eb", "control or invisible characters", "a_b"),
        ("a\u2028b", "control or invisible characters", "a_b"),
        ("a\udcfcb", "bytes that are not UTF-8", "a_b"),
        ("a.", "a dot or space at the end", "a"),
        ("a ", "a dot or space at the end", "a"),
        ("..", "a dot or space at the end", ""),
        ("CON", "a name that Windows reserves for a device", "CON_"),
        ("nul.tar.gz", "a name that Windows reserves for a device", "nul_.tar.gz"),
        ("Aux .txt", "a name that Windows reserves for a device", "Aux_.txt"),
        ("com³", "a name that Windows reserves for a device", "com³_"),
        ("conin$", "a name that Windows reserves for a device", "conin$_"),
    ],
)
def test_other_names_are_named_and_repaired(name: str, fault: str, repaired: str) -> None:
    assert name_fault(name) == fault
    assert portable_name(name) == repaired
    assert not repaired or name_fault(repaired) is None
    everywhere = fault.startswith(("control", "bytes"))
    assert name_fault(name, on_windows=False) == (fault if everywhere else None)


def test_names_of_one_file_on_some_system_have_one_folded_form() -> None:
    assert folded("STRASSE/Ö") == folded("straße/O\u0308")
    assert folded("a") != folded("ä")
