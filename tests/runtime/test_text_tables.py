from html.parser import HTMLParser

import pytest

from medseg.runtime.text_tables import align_columns, html_table, text_table

ROWS = [("label", "n", "Dice"), ("liver", "12", "0.951"), ("left kidney", "3", "-")]


def test_columns_are_padded_and_numbers_are_right_aligned():
    assert text_table(ROWS, ["15 cases"]).splitlines() == [
        "label         n   Dice",
        "----------------------",
        "liver        12  0.951",
        "left kidney   3      -",
        "15 cases",
    ]


def test_the_total_is_separated_by_a_rule():
    lines = text_table(ROWS, total=True).splitlines()
    assert set(lines[1]) == set(lines[3]) == {"-"}
    assert lines[4].startswith("left kidney")


@pytest.mark.parametrize(("alignment", "expected"), [("ll", "a   b"), ("rr", " a  b"), ("", "a   b")])
def test_alignment(alignment, expected):
    assert align_columns([("a", "b"), ("cc", "d")], alignment)[0] == expected


def test_lines_have_no_trailing_spaces_and_an_empty_table_has_no_lines():
    assert align_columns([("a", ""), ("b", "c")]) == ["a", "b  c"]
    assert align_columns([]) == []


def test_html_escapes_names():
    page = html_table([("label", "n"), ("<script>", "1")], ["a & b"])
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(page)
    assert "th" in tags
    assert "script" not in tags
    assert "&lt;script&gt;" in page
    assert "<p>a &amp; b</p>" in page
