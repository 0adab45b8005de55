from __future__ import annotations

import pytest

from medseg.data.datasets.names import persons_by_name


@pytest.mark.parametrize(
    ("names", "person"),
    [
        (["p01_a", "p01_b", "p02_a", "p03_a", "p04_a"], "p01"),
        (
            ["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient003_frame01"],
            "patient001",
        ),
        (["sub-07_ses-1", "sub-07_ses-2", "sub-08_ses-1", "sub-09_ses-1"], "sub-07"),
        (["S3_pre", "S3_post", "S4_pre", "S5_pre"], "S3"),
        (["case_12_L", "case_12_R", "case_13_L", "case_14_L"], "case_12"),
        (["004_t1", "004_t2", "005_t1", "006_t1"], "004"),
        (["pat-5-v1", "pat-5-v2", "pat-6-v1", "pat-7-v1"], "pat-5"),
    ],
)
def test_persons_with_several_cases(names: list[str], person: str) -> None:
    found = persons_by_name(names)
    assert list(found) == [person]
    assert sorted(found[person]) == sorted(names[:2])


@pytest.mark.parametrize(
    "names",
    [
        [f"liver_{number}" for number in range(30)],
        [f"hippocampus_{number:03d}" for number in range(30)],
        [f"BRATS_{number:03d}" for number in range(30)],
        [f"case_{number:05d}" for number in range(30)],
        [f"site1_{number:03d}" for number in range(30)],
        [f"Task04_hippo_{number}" for number in range(30)],
        [f"study2_{number}" for number in range(30)],  # one study, not one person
        ["0a7d30b252359a10fd", "0a7d30b252359a10fe", "c1", "c2"],
        ["p01_a", "p02_a", "p03_a"],
    ],
)
def test_numbered_cases_are_not_persons(names: list[str]) -> None:
    assert persons_by_name(names) == {}
