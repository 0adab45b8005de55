"""Memory that was requested, and memory of this machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medseg.errors import ConfigError
from medseg.planning import memory_budget as module
from medseg.planning.memory_budget import choose_budget
from medseg.planning.nnunet.presets import PRESETS
from medseg.runtime.memory import GIB

ASKED = module._gpu  # which the fixtures of this folder replace


@pytest.mark.parametrize(
    ("text", "gibibytes"),
    [("8GiB", 8), ("8GB", 8e9 / 2**30), ("2048 MiB", 2), ("0.5gib", 0.5), ("1TiB", 1024)],
)
def test_a_requested_size_is_counted_in_gibibytes_as_presets_are(text, gibibytes):
    assert choose_budget(PRESETS["unet"], text, "cuda").gib == gibibytes


@pytest.mark.parametrize("number", ["8", 8])
def test_a_number_without_a_unit_is_refused_with_both_units(number):
    with pytest.raises(ConfigError, match=r"memory: found '8', a number without a unit, .* 8GB .* 8GiB"):
        choose_budget(PRESETS["unet"], number)


def test_a_requested_size_is_used():
    found = choose_budget(PRESETS["resenc-l"], "11GiB", "cuda")
    assert (found.gib, found.on_gpu) == (11, True)
    assert "as requested" in found.source


def test_a_requested_device_is_planned_for_on_every_machine(monkeypatch):
    monkeypatch.setattr(module, "_gpu", lambda: pytest.fail("this machine was asked for its GPU"))
    found = choose_budget(PRESETS["resenc-l"], None, "cuda")
    assert (found.gib, found.on_gpu) == (24, True)
    assert not choose_budget(PRESETS["resenc-l"], None, "cpu").on_gpu


@pytest.mark.parametrize(
    ("gpu", "amount", "told"), [(80.0, 24, "meant for"), (11.0, 11, "this machine's Made-up")]
)
def test_a_gpu_bounds_the_preset(gpu, amount, told, monkeypatch):
    monkeypatch.setattr(module, "_gpu", lambda: ("Made-up GPU", gpu))
    found = choose_budget(PRESETS["resenc-l"], None)
    assert (found.gib, found.on_gpu) == (amount, True)
    assert told in found.source
    assert "Made-up GPU" in found.source


@pytest.mark.parametrize(
    ("memory", "amount", "told"),
    [
        (None, 2e9 / GIB, "8GB of memory, as assumed without --memory"),
        ("8GB", 2e9 / GIB, "8GB of memory, as requested"),
        ("16GiB", 4, "16GiB of memory, as requested"),
        ("500GiB", 8, "8 GiB, the memory that the preset unet is meant for"),
    ],
)
def test_a_quarter_of_the_memory_of_a_processor_is_used(memory, amount, told):
    found = choose_budget(PRESETS["unet"], memory)
    assert (found.gib, found.on_gpu) == (pytest.approx(amount), False)
    assert told in found.source


@pytest.mark.parametrize("cards", [0, 1])
def test_the_first_gpu_is_asked_for_its_name_and_memory(monkeypatch, cards):
    properties = SimpleNamespace(name="a card", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert ASKED() == (("a card", 80.0) if cards else ("", None))
