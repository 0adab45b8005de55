"""A compiler must be there before a network is compiled."""

from __future__ import annotations

import os
import shutil

import pytest

from medseg.errors import ConfigError
from medseg.runtime.compilation import prepare_compilation


def test_a_missing_compiler_is_named_with_its_setting(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"train\.compile: found no C\+\+ compiler.*set train\.compile=false"
    ):
        prepare_compilation("train.compile")


def test_compiled_code_is_kept_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    prepare_compilation("compile")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"  # what the user has set stays
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    prepare_compilation("compile")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "medseg" / "compiled")
