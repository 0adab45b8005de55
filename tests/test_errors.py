from __future__ import annotations

import pytest

from medseg.errors import (
    CasesFailedError,
    ConfigError,
    DataError,
    MedsegError,
    ModelError,
    ResourceError,
    all_results,
    collected_warnings,
    did_you_mean,
    error_message,
    format_warning,
    shown_text,
    warn_once,
)


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_kinds_are_medseg_errors_and_print_as_their_message(kind: type[MedsegError]) -> None:
    assert issubclass(kind, MedsegError)
    assert str(kind("ct.nii.gz: damaged. Copy it.")) == "ct.nii.gz: damaged. Copy it."


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        (None, None, "ct.nii: dim: wrong. Check it."),
        (3, None, "ct.nii: dim: wrong: found 3. Check it."),
        (None, 2, "ct.nii: dim: wrong: expected 2. Check it."),
        (0, 2, "ct.nii: dim: wrong: found 0, expected 2. Check it."),
    ],
)
@pytest.mark.parametrize("fix", ["Check it", "Check it."])
def test_describe_joins_where_what_values_and_fix(
    found: object, expected: object, text: str, fix: str
) -> None:
    assert error_message("ct.nii: dim", "wrong", found=found, expected=expected, fix=fix) == text


def test_nearest_word() -> None:
    assert did_you_mean("lerning_rate", ["batch_size", "learning_rate"]) == " Did you mean 'learning_rate'?"
    assert did_you_mean("xyz", ["batch_size", "learning_rate"]) == ""
    assert did_you_mean("xyz", []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Müller 患者甲 µm — ok\n", "Müller 患者甲 µm — ok\n"),
        ("a\x1b[31mb\x1b]0;title\x07", "a\\x1b[31mb\\x1b]0;title\\x07"),
        ("liver\u202egpj.exe", "liver\\u202egpj.exe"),
        ("a\rb", "a\\rb"),
        ("\rredrawn\r", "\rredrawn\\r"),
        ("name\udcff", "name\\udcff"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert shown_text(text) == shown


def test_messages_show_the_control_characters_of_files() -> None:
    assert str(ModelError("manifest.json: found SHA-256 ab\x1b[2J\x00.")) == (
        "manifest.json: found SHA-256 ab\\x1b[2J\\x00."
    )
    with collected_warnings() as messages:
        warn_once("a.raw\x1b[2J: found 3 bytes after the voxels.")
    assert messages == ["a.raw\\x1b[2J: found 3 bytes after the voxels."]


def test_a_warning_of_a_library_keeps_its_place():
    assert format_warning("old.", UserWarning, "file.py", 3) == "file.py:3: UserWarning: old.\n"


def test_the_results_of_cases_are_returned_in_order_or_all_failures_are_listed() -> None:
    assert all_results([3, 1, 2], "data", "Fix them.") == [3, 1, 2]
    failures = [DataError("case a: no label."), ResourceError("case c: no memory.")]
    with pytest.raises(
        CasesFailedError,
        match=r"data: 2 of 3 cases .*\n  case a: no label\.\n  case c: no memory\.\nFix them\.",
    ):
        all_results([failures[0], 1, failures[1]], "data", "Fix them.")
    with pytest.raises(ResourceError, match="1 of 2 cases"):
        all_results([1, failures[1]], "data", "Fix them.")
