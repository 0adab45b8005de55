from __future__ import annotations

import io
import sys

import pytest

from medseg.cli.terminal import SafeStream, safe_output


def test_a_progress_bar_may_move_the_cursor() -> None:
    buffer = io.StringIO()
    stream = SafeStream(buffer)
    stream.write("\n\x1b[A")
    stream.write("\r50%")
    stream.writelines(["a\x1b[A", "b"])
    assert buffer.getvalue() == "\n\x1b[A\r50%a\\x1b[Ab"


def test_characters_outside_the_encoding_are_escaped() -> None:
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    stream.write("Müller")
    assert raw.getvalue() == b"M\\xfcller"


def test_streams_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with safe_output():
        print("a\x1bb")
        print("c\x1bd", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\\x1bb\n", "c\\x1bd\n")
