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
        (["sub-01_ses-1_run-1", "sub-01_ses-2_run-1", "sub-02_ses-1_run-1", "sub-03_ses-1_run-1"], "sub-01"),
        (["1_t1", "1_t2_SPACE", "2_t1", "3_t1"], "1"),
        (["A0S9V9_ED", "A0S9V9_ES", "A1D0Q7_ED", "B3F0W2_ED"], "A0S9V9"),
        (["r001s001_ses-1", "r001s001_ses-2", "r001s002_ses-1", "r002s001_ses-1"], "r001s001"),
        (["OAS30001_MR_d0129", "OAS30001_MR_d0757", "OAS30002_MR_d0371", "OAS30003_MR_d0558"], "OAS30001"),
        (["002_S_0295_m00", "002_S_0295_m12", "002_S_0413_m00", "002_S_0559_m00"], "002_S_0295"),
        (["BraTS-GLI-00008-000", "BraTS-GLI-00008-001", "BraTS-GLI-00009-000", "X-1"], "BraTS-GLI-00008"),
        (["UPENN-GBM-00002_11", "UPENN-GBM-00002_21", "UPENN-GBM-00003_11", "X-1"], "UPENN-GBM-00002"),
        (["Image_01L", "Image_01R", "Image_02L", "Image_03L"], "Image_01"),
        (["p1a", "p1b", "p2a", "p3a"], "p1"),
        (["patient 3 visit 1", "patient 3 visit 2", "patient 4 visit 1", "x"], "patient 3"),
        (["p1.a", "p1.b", "p2.a", "p3.a"], "p1"),
        (["patient1_001", "patient1_002", "patient2_001", "patient3_001"], "patient1"),
        (["12_1", "12_2", "13_1", "14_1"], "12"),
        (["train_001_frame01", "train_001_frame12", "train_002_frame01", "val_001_frame01"], "train_001"),
        (["study_1_pre", "study_1_post", "study_2_pre", "study_3_pre"], "study_1"),
        (["data_03_L", "data_03_R", "data_04_L", "data_05_L"], "data_03"),
        (["study1_p01_a", "study1_p01_b", "study1_p02_a", "study2_p01_a"], "study1_p01"),
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
        [f"case_{number}" for number in range(30)],
        [f"la_{number:03d}" for number in range(30)],
        [f"prostate_{number:02d}" for number in range(30)],
        [f"sub-{number:02d}" for number in range(30)],
        [f"FLARE22_Tr_{number:04d}" for number in range(30)],
        [f"LUNG1-{number:03d}" for number in range(30)],
        [f"site{site}_{number:02d}" for site in range(1, 6) for number in range(20)],
        [f"site{site}_s{number:02d}" for site in range(1, 6) for number in range(20)],
        [f"center{site}_{letter}" for site in range(1, 6) for letter in "abc"],
        [f"day{day}_{letter}" for day in range(1, 6) for letter in "abc"],  # persons a, b and c on five days
        [f"Brats18_2013_{number}_1" for number in range(1, 28)],
        [f"promise{year}_{number:02d}" for year in (2012, 2013, 2014) for number in range(20)],
        [f"2021-0{month}-{day}" for month in range(1, 7) for day in range(10, 20)],
        [f"TCGA-18-5592-01Z-00-DX{number}" for number in range(1, 3)],
        [f"002_S_0{number}" for number in range(295, 320)],
        [f"{3 * number}" for number in range(30)],
    ],
)
def test_numbered_cases_are_not_persons(names: list[str]) -> None:
    assert persons_by_name(names) == {}


@pytest.mark.parametrize("visits", ["abc", ["frame01", "frame12", "frame20"], ["L", "R", "pre"]])
def test_a_person_with_most_of_the_cases_is_still_one_person(visits) -> None:
    """Only plain numbers may be those of persons of one study."""
    names = [f"p1_{visit}" for visit in visits]
    assert persons_by_name([*names, "p2_a"]) == {"p1": tuple(sorted(names))}


def test_numbers_within_one_study_do_not_hide_persons_with_visits() -> None:
    numbered = [f"scans12_{number}" for number in range(20)]
    assert persons_by_name([*numbered, "p1_a", "p1_b"]) == {"p1": ("p1_a", "p1_b")}
