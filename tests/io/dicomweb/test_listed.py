from __future__ import annotations

from typing import Any

import pytest

from medseg.errors import DataError
from medseg.io.dicomweb.listed import (
    ListedSeries,
    ListedStudy,
    checked_uid,
    listed_series,
    listed_study,
    search_filters,
)


def element(*values: Any) -> dict[str, Any]:
    return {"vr": "UN", "Value": list(values)}


def test_a_study_has_readable_values_and_no_names() -> None:
    item = {
        "0020000D": element("1.2.3"),
        "00080020": element("20200131"),
        "00080030": element("120059.5"),
        "00080050": element("A1"),
        "00080061": element("CT", "SR"),
        "00081030": element("abdomen\n"),
        "00201206": element(4),
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    }
    assert listed_study(item) == ListedStudy("1.2.3", "2020-01-31", "12:00", "A1", "abdomen", ("CT", "SR"), 4)


def test_values_that_are_missing_or_of_another_form_are_empty() -> None:
    item = {"0020000D": element("1.2"), "00080020": element("yesterday"), "00080050": {"vr": "SH"}}
    assert listed_study(item) == ListedStudy("1.2", "", "", "", "", (), None)
    item = {"0020000E": element("1.3"), "00200011": element("x")}
    assert listed_series(item, "1.2") == ListedSeries("1.2", "1.3", None, "", "", None)


@pytest.mark.parametrize("item", [None, 7, [], "x", {}, {"0020000D": 7}, {"0020000D": element("Doe/..")}])
def test_items_without_a_valid_uid_are_refused(item: object) -> None:
    with pytest.raises(ValueError, match=r"DICOM JSON model|no valid UID"):
        listed_study(item)


def test_a_series_of_another_study_is_refused() -> None:
    with pytest.raises(ValueError, match="another study"):
        listed_series({"0020000D": element("1.9"), "0020000E": element("1.3")}, "1.2")


@pytest.mark.parametrize("uid", ["", "x", "1.", ".1", "1..2", "../1", "1/2", "1" * 65, "1.2?x=1", "1.2\n1"])
def test_what_is_no_uid_is_refused_without_showing_it(uid: str) -> None:
    with pytest.raises(DataError, match="study: found") as refused:
        checked_uid(uid, "study")
    assert len(uid) < 3 or uid not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "filters"),
    [
        (("", "", ""), {}),
        ((" 1.2.3 ", "", ""), {"StudyInstanceUID": "1.2.3"}),
        (("", "", "20200131"), {"StudyDate": "20200131"}),
        (("", "", "2020-01-01/2020-01-31"), {"StudyDate": "20200101-20200131"}),
    ],
)
def test_searches_become_filters(words: tuple[str, str, str], filters: dict[str, str]) -> None:
    assert search_filters(*words) == filters


@pytest.mark.parametrize(
    "words",
    [
        *(("x", "", ""), ("", "A" * 17, ""), ("", "A*", ""), ("", "A\\B", ""), ("", "A\x01", "")),
        *(
            ("", "", "31.1.2020"),
            ("", "", "2020"),
            ("", "", "2020-01-01/"),
            ("", "", "2020-01-01/2020-01-02/2020-01-03"),
        ),
    ],
)
def test_searches_of_another_form_are_refused(words: tuple[str, str, str]) -> None:
    with pytest.raises(DataError, match=r"(study|accession|date): found .*(Correct it|Copy the UID)"):
        search_filters(*words)
