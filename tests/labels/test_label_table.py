from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.datasets.dataset_json import parse_labels
from medseg.errors import DataError
from medseg.labels.colours import distinct_colour
from medseg.labels.label_table import Label, Labels, unnamed_label

ORGANS = Labels.from_names({"liver": 30, "background": 0, "spleen": 2})


def test_classes_follow_values() -> None:
    assert ORGANS.names == ("background", "spleen", "liver")
    assert ORGANS.values == (0, 2, 30)
    assert [label.name for label in ORGANS.foreground] == ["spleen", "liver"]
    assert len(ORGANS) == 3
    assert ORGANS[2].name == "liver"
    assert [label.value for label in ORGANS] == [0, 2, 30]


def test_background_is_added() -> None:
    assert Labels.from_names({"tumour": 1}).names == ("background", "tumour")
    assert Labels.from_names({"air": 0, "tumour": 1}).names == ("air", "tumour")


@pytest.mark.parametrize(
    "table",
    [
        {"background": 5, "liver": 1},
        {"a": 1, "b": 1},
        {"a": -1},
        {"a": 2**31},
        {"": 1},
        {"a\tb": 1},
        {"a\nb": 1},
    ],
)
def test_bad_tables_are_refused(table: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"labels: found .*, expected .*(Fix the table|Rename these labels)"):
        Labels.from_names(table)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(DataError, match="expected unique names and values"):
        Labels((Label("a", 0, (0, 0, 0)), Label("a", 1, (1, 1, 1))))


def test_value_of_finds_names_and_raises_for_unknown_ones() -> None:
    assert ORGANS.value_of("liver") == 30
    with pytest.raises(DataError, match=r"unknown label 'livre'\. Did you mean 'liver'\?.*Known: background"):
        ORGANS.value_of("livre")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32])
def test_to_classes_and_back(dtype: type) -> None:
    values = np.array([[0, 2], [30, 2]], dtype=dtype)
    classes = ORGANS.to_classes(values)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 1], [2, 1]]
    assert ORGANS.to_values(classes).tolist() == values.tolist()


@pytest.mark.parametrize("alien", [1, 31, 255, -1])
def test_unknown_values_are_counted(alien: int) -> None:
    values = np.array([0, 2, alien, alien], dtype=np.int16)
    with pytest.raises(
        DataError, match=rf"case_7: unknown label value: found {alien} \(2 voxels\), expected one of 0, 2, 30"
    ):
        ORGANS.to_classes(values, where="case_7")


@pytest.mark.parametrize(
    ("values", "labels", "hinted"),
    [
        ([0, 255, 255], {"nucleus": 1}, True),
        ([0, 1, 255], {"nucleus": 1}, False),
        ([0, 128, 255], {"nucleus": 1}, False),
        ([0, 255], {"nucleus": 1, "cell": 2}, False),
    ],
)
def test_masks_of_0_and_255_are_known(values: list[int], labels: dict[str, int], hinted: bool) -> None:
    with pytest.raises(DataError) as told:
        Labels.from_names(labels).to_classes(np.array(values, dtype=np.uint8))
    assert ("mask of 0 and 255, set data.labels={nucleus: 255}; else add it" in str(told.value)) == hinted
    if hinted:
        assert Labels.from_names({"nucleus": 255}).to_classes(np.array(values)).tolist() == [0, 1, 1]
    else:
        assert "Add it to the dataset's labels" in str(told.value)


def test_nan_is_no_label() -> None:
    with pytest.raises(DataError, match=r"nan \(1 voxels\)"):
        ORGANS.to_classes(np.array([0, np.nan], dtype=np.float32))


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32), (2**31 - 1, np.int32)],
)
def test_values_take_the_smallest_type(largest: int, dtype: type) -> None:
    values = Labels.from_names({"x": largest}).to_values(np.array([0, 1]))
    assert values.dtype == dtype
    assert values.tolist() == [0, largest]


def test_many_classes_take_two_bytes() -> None:
    labels = Labels.from_names({f"organ {i}": i for i in range(300)})
    assert labels.to_classes(np.array([299])).dtype == np.uint16


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1, max_size=8),
        st.integers(1, 2**31 - 1),
        min_size=1,
        max_size=6,
    )
)
def test_table_round_trip(tmp_path_factory: pytest.TempPathFactory, table: dict[str, int]) -> None:
    values = list(dict.fromkeys(table.values()))
    names = [name for name in table if name != "background"]
    if not names:
        return
    labels = Labels.from_names(dict(zip(names, values, strict=False)))
    path = tmp_path_factory.mktemp("labels") / "labels.tsv"
    path.write_text(labels.to_tsv(), encoding="utf-8")
    assert Labels.from_tsv(path) == labels


def test_reads_an_index_column_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("index\tname\n2\tspleen \n1\tliver\n", encoding="utf-8-sig")
    assert dict(zip(Labels.from_tsv(path).names, Labels.from_tsv(path).values, strict=True)) == {
        "background": 0,
        "liver": 1,
        "spleen": 2,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,value\na,1\n", "found columns name,value, expected tab-separated columns"),
        ("value\tname\nx\ta\n", "line 2: value: found 'x', expected a whole number from 0"),
        ("value\tname\tcolour\n1\ta\t#12\n", "line 2: colour: found '#12', expected six hexadecimal digits"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"labels\.tsv: {expected}.*Fix"):
        Labels.from_tsv(path)


def test_short_rows_and_repeated_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("value\tname\n1\n")
    with pytest.raises(DataError, match=r"labels\.tsv: line 2: found 1 cells, expected 2"):
        Labels.from_tsv(path)
    path.write_text("value\tname\n1\ta\n2\ta\n")
    with pytest.raises(DataError, match=r"labels\.tsv: found the name 'a' twice"):
        Labels.from_tsv(path)


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.tsv: cannot be read \(No such file"):
        Labels.from_tsv(tmp_path / "absent.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"binary\.tsv: cannot be read"):
        Labels.from_tsv(tmp_path / "binary.tsv")


def test_colours_are_distinct_and_kept() -> None:
    colours = [distinct_colour(index) for index in range(118)]
    assert colours[0] == (0, 0, 0)
    assert len(set(colours)) == len(colours)
    assert Labels.from_names({"a": 1}, {"a": (1, 2, 3)})[1].colour == (1, 2, 3)


@pytest.mark.parametrize(("name", "count"), [("labels.tsv", 118), ("example_mr_sm_labels.tsv", 51)])
def test_real_tables_are_read(shared_data: Path, name: str, count: int) -> None:
    labels = Labels.from_tsv(shared_data / "ct_torso" / name)
    assert len(labels) == count
    assert labels.values == tuple(range(count))


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.sampled_from([1, 2, 3, 7, 127, 128, 255, 256, 300, 40000, 2**20, 2**31 - 1]), min_size=1),
    st.sampled_from(["u1", "i1", "u2", "i2", "i4", "i8", "u8", "f8"]),
    st.integers(0, 999),
)
def test_any_table_and_type_round_trips(values: set[int], dtype: str, seed: int) -> None:
    labels = Labels.from_names({f"label {value}": value for value in values})
    known = [0, *sorted(values)]
    limit = np.finfo(dtype).max if dtype[0] == "f" else np.iinfo(dtype).max
    usable = [value for value in known if value <= limit]
    chosen = np.random.default_rng(seed).choice(usable, (3, 4, 2)).astype(dtype)
    classes = labels.to_classes(chosen)
    assert classes.tolist() == np.searchsorted(known, chosen).tolist()
    assert np.array_equal(labels.to_values(classes), chosen)
    alien = chosen.copy()
    alien[0, 0, 0] = 5
    with pytest.raises(DataError, match=r"found 5(\.0)? \(1 voxels\)"):
        labels.to_classes(alien)


BRATS = Labels.from_names({"oedema": 1, "necrosis": 2, "enhancing": 3})
REGIONS = {"whole": [1, 2, 3], "core": [3, 2], "enhancing": [3]}


def test_regions_are_written_in_order_later_ones_on_top() -> None:
    labels = BRATS.with_regions(REGIONS)
    assert [(r.name, r.values, r.output_value) for r in labels.regions] == [
        ("whole", (1, 2, 3), 1),
        ("core", (2, 3), 2),
        ("enhancing", (3,), 3),
    ]
    assert (labels.num_outputs, labels.output_names) == (3, ("whole", "core", "enhancing"))
    assert labels.evaluated == labels.regions
    assert labels.regions[1].colour == BRATS[2].colour
    assert BRATS.with_regions({"both": [1, 2], "same": [1, 2]}).regions[0].output_value == 1
    assert BRATS.with_regions(REGIONS, {"whole": 3}).regions[0].output_value == 3
    assert labels.with_regions({}) == BRATS


def test_without_regions_the_classes_are_the_outputs() -> None:
    assert (ORGANS.num_outputs, ORGANS.output_names) == (3, ("background", "spleen", "liver"))
    assert [(r.name, r.values, r.output_value) for r in ORGANS.evaluated] == [
        ("spleen", (2,), 2),
        ("liver", (30,), 30),
    ]


@pytest.mark.parametrize(
    ("regions", "written", "message"),
    [
        ({"whole": [1, 4]}, {}, "regions: whole: found the unknown value 4, expected values of labels"),
        ({"whole": [0, 1]}, {}, "regions: whole: found the unknown value 0"),
        ({"whole": [1, 2]}, {"whole": 9}, "regions: whole: found the unknown value 9"),
        ({"enhancing": [2, 3]}, {}, "regions: enhancing: another label or region has this name"),
        ({"background": [2]}, {}, "regions: background: another label or region has this name"),
        ({"whole": []}, {"whole": 1}, r"regions: whole: found values \[\], expected one or more"),
        ({"a\nb": [1]}, {}, "regions: found the name"),
    ],
)
def test_bad_regions_are_refused(
    regions: dict[str, list[int]], written: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        BRATS.with_regions(regions, written)


def test_a_region_twice_is_refused() -> None:
    region = BRATS.with_regions({"whole": [1, 2]}).regions[0]
    with pytest.raises(DataError, match="regions: whole: another label or region has this name"):
        replace(BRATS, regions=(region, region))


@pytest.mark.parametrize("value", [0, 3, -1, 2**31])
def test_invalid_ignore_value_raises(value: int) -> None:
    with pytest.raises(DataError, match=f"ignore: found {value}, expected a value that no label has"):
        replace(BRATS, ignore=value)


def test_ignored_voxels_are_class_k() -> None:
    labels = replace(ORGANS, ignore=255)
    values = np.array([[0, 255], [30, 2]], dtype=np.uint8)
    classes = labels.to_classes(values)
    assert classes.tolist() == [[0, 3], [2, 1]]
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(labels.to_values(classes), values)
    with pytest.raises(DataError, match="unknown label value: found 254"):
        labels.to_classes(np.array([254, 255]))
    with pytest.raises(DataError, match="unknown label value: found 255"):
        ORGANS.to_classes(values)


def test_a_large_ignore_value_makes_only_maps_with_it_larger() -> None:
    labels = replace(ORGANS, ignore=70_000)
    assert labels.to_values(np.array([0, 2])).dtype == np.uint8
    assert labels.to_values(np.array([0, 3])).tolist() == [0, 70_000]


def test_ignore_beyond_256_classes_takes_two_bytes() -> None:
    labels = replace(Labels.from_names({f"l{value}": value for value in range(256)}), ignore=300)
    assert labels.to_classes(np.array([255, 300])).tolist() == [255, 256]


def test_regions_and_ignore_survive_the_table(tmp_path: Path) -> None:
    labels = replace(BRATS.with_regions(REGIONS, {"whole": 2}), ignore=9)
    file = tmp_path / "labels.tsv"
    file.write_text(labels.to_tsv())
    assert Labels.from_tsv(file) == labels
    assert "kind" not in BRATS.to_tsv()
    assert file.read_text().splitlines()[5].split("\t")[1:4:2] == ["whole", "region 1 2 3"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1\ta\tregion", "kind: found 'region', expected"),
        ("1\ta\tlabel 2", "kind: found 'label 2', expected"),
        ("1\ta\tmask", "kind: found 'mask', expected"),
        ("1\ta\tlabel\n8\tb\tignore\n9\tc\tignore", "found 2 rows of kind ignore"),
        ("1\ta\tlabel\n1\tr\tregion 1\n1\tr\tregion 1", "name 'r' twice"),
        ("1\ta\tlabel\n1\tr\tregion 1 x", "kind: found 'x', expected a whole number"),
    ],
)
def test_bad_kinds_are_refused_by_file(tmp_path: Path, rows: str, message: str) -> None:
    file = tmp_path / "labels.tsv"
    file.write_text(f"value\tname\tkind\n{rows}\n")
    with pytest.raises(DataError, match=f"labels.tsv: .*{message}"):
        Labels.from_tsv(file)


def test_sided_regions_are_pairs() -> None:
    labels = Labels.from_names({"a": 1, "b": 2}).with_regions({"left_hand": [1], "right_hand": [2]})
    assert labels.left_right_pairs() == (("left_hand", "right_hand"),)


def test_a_table_with_an_endless_name_is_refused_by_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.tsv"
    file.write_text("value\tname\n1\t" + "a" * 140_000 + "\n")
    with pytest.raises(DataError, match=r"labels\.tsv: line 2: field larger than"):
        Labels.from_tsv(file)


def test_a_label_without_a_name_is_called_by_its_value_everywhere() -> None:
    assert unnamed_label(3) == "label_3"
    assert Labels.from_values(np.array([3, 0])).names == ("background", "label_3")
    entries = {"background": 0, "whole": [1, 3], "core": 1}
    labels = parse_labels(entries, "dataset.json", [3, 1])
    assert labels.names == ("background", "core", "label_3")
