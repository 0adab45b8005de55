"""Comparisons between cases that were checked, without files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medseg.check.cases.check_case import ChannelRange, CheckedCase
from medseg.check.datasets.across_cases import duplicates, findings_across_cases
from medseg.volumes.grid import Grid

AIR_TO_BONE = ChannelRange(-1024.0, 1500.0, 30.0)


def cases(count: int, grid: Grid | None = None, channel: ChannelRange = AIR_TO_BONE) -> list[CheckedCase]:
    return [
        CheckedCase(f"c{n}", f"c{n}", (), grid, (channel,), f"hash {n}", image_file=f"c{n}.nii")
        for n in range(count)
    ]


def codes(checked: list[CheckedCase]) -> list[str]:
    return [one.code for one in findings_across_cases(checked, None, ("CT",), "dataset.json")]


def test_cases_without_a_place_or_intensities_are_compared_with_no_others() -> None:
    unread = [replace(case, channels=()) for case in cases(10)]
    in_pixels = cases(10, Grid((8, 8, 1), np.eye(4), in_pixels=True))
    constant = cases(10, channel=ChannelRange(0.0, 0.0, 0.0))
    assert codes(unread) == codes(in_pixels) == codes(constant) == []


def test_constant_images_are_no_duplicates() -> None:
    same = [replace(case, image_hash="same") for case in cases(2)]
    assert [one.code for one in duplicates(same)] == ["IMAGE_DUPLICATE"]
    constant = [replace(case, channels=(ChannelRange(1.0, 1.0, 1.0),)) for case in same]
    assert list(duplicates(constant)) == []


def test_many_outliers_are_one_finding() -> None:
    usual, small = Grid((8, 8, 8), np.eye(4)), Grid((8, 8, 8), np.diag([9.0, 9.0, 9.0, 1.0]))
    few = [replace(case, grid=small if n < 2 else usual) for n, case in enumerate(cases(30))]
    many = [replace(case, grid=small if n < 8 else usual) for n, case in enumerate(cases(30))]
    assert codes(few).count("SPACING_OUTLIER") == 2
    (found,) = (
        one
        for one in findings_across_cases(many, None, ("CT",), "dataset.json")
        if one.code == "SPACING_OUTLIER"
    )
    assert found.cases == tuple(f"c{n}" for n in range(8))
    assert found.found.startswith("8 cases such as c0 with ")


def test_one_of_a_few_cases_is_an_outlier_only_if_it_is_far_from_all_others() -> None:
    def found(*sizes: float) -> list[str]:
        grids = [Grid((8, 8, 8), np.diag([size, size, size, 1.0])) for size in sizes]
        checked = [replace(case, grid=grid) for case, grid in zip(cases(len(sizes)), grids, strict=True)]
        return [
            one.case
            for one in findings_across_cases(checked, None, ("CT",), "d")
            if one.code == "SPACING_OUTLIER"
        ]

    assert found(1, 1.2, 9.7, 0.9) == ["c2"]
    assert found(1, 1.2, 0.1, 0.9, 1) == ["c2"]
    assert found(1, 1.2, 7, 0.9) == []  # less than 8 times
    assert found(1, 1.2, 9.7) == []  # too few
    assert found(1, 9.7, 1.2, 9.7) == []  # two of them
    assert found(1, 2.5, 30, 1.2) == []  # the others differ


def test_images_of_8_bits_among_others_are_named() -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    mixed = [replace(case, grid=grid, bits=8 if n < 2 else 16) for n, case in enumerate(cases(5))]
    (found,) = (
        one
        for one in findings_across_cases(mixed, None, ("CT",), "d.json")
        if one.code == "IMAGE_BITS_DIFFER"
    )
    assert (found.file, found.found) == ("d.json", "2 with 8 bits, 3 with more")
    for same in (8, 16):
        assert "IMAGE_BITS_DIFFER" not in codes([replace(case, bits=same) for case in mixed])
