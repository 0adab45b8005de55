from __future__ import annotations

from pathlib import Path

import pytest

from tests.catalogue.promise import Answer, Broken, Promise, require_kept
from tests.catalogue.run import Shared, run_entry
from tests.catalogue.table import numbered
from tests.helpers.runs import single_thread

__all__ = ["single_thread"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("catalogue"))


def _parameters() -> list[object]:
    found = []
    for variant, promise in numbered():
        marks = [pytest.mark.slow] if promise.slow else []
        found.append(pytest.param(variant, promise, id=f"{promise.number:03d} {promise.case}", marks=marks))
    return found


@pytest.mark.parametrize(("variant", "promise"), _parameters())
def test_entry(variant: int, promise: Promise, shared: Shared, tmp_path: Path) -> None:
    if promise.needs_gpu:
        pytest.skip("needs a GPU")
    failure = run_entry(promise, variant, tmp_path / "entry", shared)
    assert failure is None, failure


def test_the_table_has_every_entry_of_the_catalogue() -> None:
    assert {promise.number for _, promise in numbered()} == set(range(1, 131))


REFUSED = Promise(1, "half a file", "refused", r"voxels", r"found 5 bytes", r"expected 10", r"Copy")
MESSAGE = "a.nii: voxels: found 5 bytes, expected 10. Copy it again."


def test_a_complete_refusal_keeps_its_promise() -> None:
    require_kept(REFUSED, Answer(1, MESSAGE, "a.nii"))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(0, MESSAGE, "a.nii"),
        Answer(1, MESSAGE.replace("a.nii", "b.nii"), "a.nii"),
        Answer(1, MESSAGE.replace("voxels", "content"), "a.nii"),
        Answer(1, MESSAGE.replace("5 bytes", "less"), "a.nii"),
        Answer(1, MESSAGE.replace(", expected 10", ""), "a.nii"),
        Answer(1, MESSAGE.replace("Copy it again.", ""), "a.nii"),
        Answer(1, "a.nii: voxels: found 5 bytes\nfound nothing, expected 10. Copy it again.", "a.nii"),
        Answer(1, MESSAGE + "\nTraceback (most recent call last):\n", "a.nii"),
    ],
)
def test_an_incomplete_refusal_breaks_its_promise(answer: Answer) -> None:
    with pytest.raises(Broken):
        require_kept(REFUSED, answer)


def test_what_is_read_must_be_silent() -> None:
    promise = Promise(1, "big-endian", "read")
    require_kept(promise, Answer(0, "Predictor(toy)\na.nii.gz  0.1 s\n1 of 1 cases in out\n"))
    with pytest.raises(Broken):
        require_kept(promise, Answer(0, "warning: a.nii: found something."))


def test_an_entry_that_hangs_is_reported(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr("tests.catalogue.run.SECONDS", 1)
    monkeypatch.setitem(
        __import__("tests.catalogue.promise", fromlist=["RECIPES"]).RECIPES,
        (999, 0),
        lambda bench: time.sleep(5),
    )
    failure = run_entry(Promise(999, "hang", "read"), 0, tmp_path / "entry", shared)
    assert failure == "not finished after 1 s"
