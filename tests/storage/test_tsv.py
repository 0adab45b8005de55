"""Tables of tab-separated values are read strictly and written so that they are read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import DataError
from medseg.storage.tsv import read_tsv, to_tsv

WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Z")), min_size=1)


def written(folder, text: str | bytes):
    path = folder / "table.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@given(rows=st.lists(st.tuples(WORDS, WORDS)))
def test_tables_round_trip(rows, tmp_path_factory):
    table = read_tsv(written(tmp_path_factory.mktemp("t"), to_tsv(["a", "b"], rows)))
    assert table.columns == ("a", "b")
    assert [tuple(row.cells.values()) for row in table.rows] == rows


def test_cells_are_stripped_empty_lines_skipped_and_lines_counted(tmp_path):
    table = read_tsv(written(tmp_path, "\ufeffa\tb\r\n\r\n 1 \t\r\n2\tx y\r\n"))
    assert [(row.line, row.cells) for row in table.rows] == [
        (3, {"a": "1", "b": ""}),
        (4, {"a": "2", "b": "x y"}),
    ]
    assert table.where(table.rows[0]) == f"{tmp_path / 'table.tsv'}: line 3"


def test_quotation_marks_are_ordinary_characters(tmp_path):
    assert read_tsv(written(tmp_path, 'a\tb\n"x\ty"\n')).rows[0].cells == {"a": '"x', "b": 'y"'}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty table"),
        ("\n\t\n", "empty table"),
        ("a\tb\ta\n", "doubled column 'a'"),
        ("a\tb\n1\n", "line 2: found 1 cells, expected 2"),
        ("a\tb\n\n1\t2\t3\n", "line 3: found 3 cells, expected 2"),
        ("a\n" + "x" * 140_000 + "\n", "line 2: field larger than"),
        (b"a\n\xff\n", "byte 2: not UTF-8"),
    ],
)
def test_damaged_tables_raise_with_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"table\.tsv: .*{message}"):
        read_tsv(written(tmp_path, text))


def test_missing_table_raises_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"table\.tsv: cannot be read \(No such file"):
        read_tsv(tmp_path / "table.tsv")


def test_wrong_columns_raise(tmp_path):
    table = read_tsv(written(tmp_path, "id\tscroe\n"))
    with pytest.raises(DataError, match=r"unknown column 'scroe'. Did you mean 'score'"):
        table.check_columns(("id",), ("score",))
    with pytest.raises(DataError, match="found columns id, scroe, expected id, name, separated by tabs"):
        table.check_columns(("id", "name"), ("scroe",), expected="id, name")
    with pytest.raises(DataError, match=r"column 'scroe': renamed to 'score'. Rename it"):
        table.check_columns(("id",), ("score",), renamed={"scroe": "score"})
    table.check_columns(("id",), ("scroe", "other"))


def test_numbers_missing_values_and_white_space_are_written():
    rows = [[1.23456789, float("nan"), float("inf"), None, "two\nlines\tand a tab", 7]]
    assert to_tsv("abcdef", rows).splitlines()[1] == "1.23457\tnan\tinf\t\ttwo lines and a tab\t7"


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x9b"])
def test_a_control_character_is_refused_with_its_line(tmp_path, character):
    path = tmp_path / "a.tsv"
    path.write_text(f"a\tb\n1\tx{character}y\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.tsv: line 2: found the control character '\\x"):
        read_tsv(path)
