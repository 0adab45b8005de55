"""Memory that was asked for, and memory of this machine."""

from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.planning import memory_budget as module
from medseg.planning.memory_budget import choose_budget, free_memory_gb, parse_memory
from medseg.planning.nnunet.presets import PRESETS


@pytest.mark.parametrize(
    ("text", "amount"),
    [("8GB", 8), ("8 GiB", 8), (8, 8), ("2048 MB", 2), ("0.5gb", 0.5), ("1TB", 1024), ("8g", 8)],
)
def test_amounts(text, amount):
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-8GB", "8 KB", "8GBs", "nan", "1e3", 0, -1, "inf"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ConfigError, match="expected an amount such as 8GB"):
        parse_memory(text)


def test_what_is_asked_for_is_taken():
    found = choose_budget(PRESETS["resenc-l"], "11GB")
    assert (found.gigabytes, found.on_gpu) == (11, True)
    assert "as asked for" in found.source


@pytest.mark.parametrize(
    ("gpu", "amount", "told"), [(80.0, 24, "made for"), (11.0, 11, "this machine's Made-up")]
)
def test_a_gpu_bounds_the_preset(gpu, amount, told, monkeypatch):
    monkeypatch.setattr(module, "_gpu", lambda: ("Made-up GPU", gpu))
    found = choose_budget(PRESETS["resenc-l"], None)
    assert (found.gigabytes, found.on_gpu) == (amount, True)
    assert told in found.source
    assert "Made-up GPU" in found.source


@pytest.mark.parametrize(("free", "amount"), [(16.0, 4.0), (500.0, 8.0)])
def test_a_processor_gives_a_quarter_of_its_free_memory(free, amount, monkeypatch):
    monkeypatch.setattr(module, "_gpu", lambda: ("", None))
    monkeypatch.setattr(module, "free_memory_gb", lambda: free)
    found = choose_budget(PRESETS["unet"], None)
    assert (found.gigabytes, found.on_gpu) == (amount, False)
    assert f"{free:g} GB of this machine's memory are free" in found.source


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("1073741824\n")
    used.write_text("536870912\n")
    monkeypatch.setattr(module, "_CGROUP", (limit, used))
    assert free_memory_gb() == 0.5
    limit.write_text("max\n")
    assert free_memory_gb() > 0.5
