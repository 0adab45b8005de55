"""Each check finds what it is for, and a plain dataset has no findings."""

from __future__ import annotations

import pytest

from medseg.data.preprocessing.histogram import IntensityStatistics
from medseg.planning.fingerprint.findings import _far_from_median, find
from medseg.volumes.grid import SHEAR_TOLERANCE


def codes(fingerprint):
    return [finding.code for finding in find(fingerprint)]


def bright(factor):
    return IntensityStatistics(
        mean=100 * factor,
        std=20 * factor,
        low=0,
        percentile_00_5=40 * factor,
        median=100 * factor,
        percentile_99_5=160 * factor,
        high=200 * factor,
    )


def test_a_plain_dataset_has_none(make_fingerprint):
    assert codes(make_fingerprint(labels=2)) == []


ODD_CASES = {
    "empty-cases": {"label_voxels": {}, "foreground": ()},
    "spacing-varies": {"spacing": (1.0, 1.0, 2.5)},
    "extent-varies": {"shape": (400, 90, 200)},
    "small-images": {"shape": (100, 90, 7)},
    "huge-images": {"shape": (1000, 1000, 1000)},
    "mixed-orientations": {"orientation": "LPS"},
    "sheared": {"shear": 0.3},
    "constant-channel": {"ranges": ((5.0, 5.0),)},
    "scale-varies": {"foreground": (bright(50),)},
}


@pytest.mark.parametrize("code", ODD_CASES)
def test_one_odd_case_among_forty_is_named(code, make_case, make_fingerprint):
    cases = [make_case(f"case_{n:02d}") for n in range(39)]
    cases.append(make_case("odd", **ODD_CASES[code]))
    findings = {finding.code: finding for finding in find(make_fingerprint(cases=cases, labels=2))}
    assert code in findings
    if code != "mixed-orientations":
        assert findings[code].cases == ("odd",)
        assert "Case odd has" in findings[code].text


@pytest.mark.parametrize(("shear", "found"), [(9e-5, False), (2e-4, True)])
def test_shear_is_found_where_grid_says_so(shear, found, make_case, make_fingerprint):
    findings = codes(make_fingerprint(cases=[make_case("a", shear=shear)], labels=2))
    assert ("sheared" in findings) == found == (shear > SHEAR_TOLERANCE)


def test_labels_that_are_absent_rare_or_tiny(make_case, make_fingerprint):
    cases = [make_case(f"case_{n:02d}", label_voxels={1: 5000, 4: 9}) for n in range(39)]
    cases.append(make_case("rare", label_voxels={1: 5000, 3: 400}))
    findings = {finding.code: finding.text for finding in find(make_fingerprint(cases=cases, labels=5))}
    assert "organ_2" in findings["label-absent"]
    assert "organ_3 (1)" in findings["label-rare"]
    assert "organ_4 (9)" in findings["label-tiny"]
    assert "organ_1" not in " ".join(findings.values())


def test_many_labels_make_one_finding(make_fingerprint):
    (finding,) = (f for f in find(make_fingerprint(labels=40)) if f.code == "label-absent")
    assert finding.text.startswith("38 labels are in no case")
    assert finding.text.endswith("and 26 more.")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1024.0, 3071.0, []), (0.0, 4095.0, ["no-air"]), (-1024.0, 65535.0, ["not-hounsfield"])],
)
def test_ct_must_be_in_hounsfield_units(low, high, expected, make_case, make_fingerprint):
    cases = [make_case(f"case_{n:02d}", ranges=((low, high),)) for n in range(40)]
    assert codes(make_fingerprint(cases=cases, labels=2, channel_names=("CT",))) == expected


def test_a_ct_by_another_name_is_noticed(make_case, make_fingerprint):
    cases = [make_case(f"case_{n:02d}", ranges=((-1024.0, 1900.0),)) for n in range(40)]
    assert codes(make_fingerprint(cases=cases, labels=2, channel_names=("image",))) == ["looks-like-ct"]


def test_thick_slices_few_cases_and_little_foreground(make_case, make_fingerprint):
    cases = [make_case(f"case_{n}", spacing=(0.7, 0.7, 5.0), label_voxels={1: 60}) for n in range(4)]
    found = codes(make_fingerprint(cases=cases, labels=2))
    assert found == ["few-cases", "tiny-foreground", "thick-slices"]  # severe ones first


def test_single_slices_are_neither_thick_nor_small(make_case, make_fingerprint):
    depths = (1.0, 5.0, 10.0)
    cases = [
        make_case(f"case_{n:02d}", shape=(200, 180, 1), spacing=(0.5, 0.5, depths[n % 3])) for n in range(40)
    ]
    assert codes(make_fingerprint(cases=cases, labels=2)) == []


def test_cases_without_a_label_map_are_counted(make_fingerprint):
    for count, text in ((1, "1 case has no label map"), (3, "3 cases have no label map")):
        (finding,) = (
            one for one in find(make_fingerprint(labels=2, unlabelled=count)) if one.code == "unlabelled"
        )
        assert finding.text == f"{text} and cannot be trained on."
        assert not finding.severe


@pytest.mark.parametrize("values", [[], [0.0, 0.0, 0.0, 5.0]])
def test_no_value_is_far_from_a_median_of_zero(values):
    assert _far_from_median(values, 2.0) == []


def test_persons_that_were_inferred_from_names_are_shown(make_case, make_fingerprint):
    cases = [make_case(f"patient{n:03}_frame{frame:02}") for n in range(20) for frame in (1, 12)]
    findings = {one.code: one for one in find(make_fingerprint(cases=cases, labels=2, subjects=20))}
    assert "20 subjects" in findings["subjects-inferred"].text
    assert "patient000_frame01 and patient000_frame12 of patient000" in findings["subjects-inferred"].text
    assert "subjects-inferred" not in codes(make_fingerprint(cases=cases, labels=2, subjects=40))
