"""Reading what ``torch.save`` wrote: tensors and plain values, from one place, and what was allowed only once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

import medseg
from medseg.errors import ModelError
from medseg.storage.torch_files import read_torch_file


@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_and_plain_values_are_read(tmp_path, mapped):
    stored = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, "two", 3.0, None, (True,)]}
    torch.save(stored, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt", mapped=mapped)
    assert torch.equal(found["a"], stored["a"])
    assert found["b"] == stored["b"]


def test_allowed_classes_apply_to_one_file_only(tmp_path):
    torch.save({"share": Fraction(1, 3)}, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt", [Fraction])["share"] == Fraction(1, 3)
    with pytest.raises(ModelError, match=r"a\.pt: found fractions\.Fraction in it"):
        read_torch_file(tmp_path / "a.pt")


def test_only_this_module_calls_torch_load():
    """And none reads them without the restriction."""
    package = Path(medseg.__file__).parent
    readers = [p.name for p in package.rglob("*.py") if "torch.load(" in p.read_text(encoding="utf-8")]
    assert readers == ["torch_files.py"]
    source = "".join(p.read_text(encoding="utf-8") for p in package.rglob("*.py"))
    assert "weights_only=False" not in source
    assert "allow_pickle=True" not in source
