"""Examples in docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import matplotlib as mpl
import pytest

import medseg
from tests.helpers.paths import ROOT

PACKAGES = ("medseg", "medseg.evaluation", "medseg.experiment", "medseg.io", "medseg.losses", "medseg.models")
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(Path(medseg.__file__).parent.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
NOT_CALLABLE = {"LOSSES", "MODELS"}


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_name_has_an_example(package: str, name: str) -> None:
    value = getattr(importlib.import_module(package), name)
    assert name in NOT_CALLABLE or ">>> " in (value.__doc__ or "")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")), optionflags=options)
    assert outcome.attempted
    assert not outcome.failed
