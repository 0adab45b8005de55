"""Byte sizes have one meaning everywhere, and free memory respects containers."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from medseg.errors import ConfigError
from medseg.inference.predictor import Predictor
from medseg.planning.memory_budget import choose_budget
from medseg.planning.nnunet.presets import PRESETS
from medseg.runtime import memory
from medseg.runtime.memory import (
    GIB,
    PeakMemory,
    control_groups,
    format_size,
    free_memory,
    parse_size,
    process_memory,
    share_free_memory,
)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Let no other process share the memory, whatever earlier tests of this process did."""
    share_free_memory(1)
    yield
    share_free_memory(1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("800 MB", 8 * 10**8),
        ("1.5gib", 3 << 29),
        (".5 GB", 5 * 10**8),
        ("2T", 2 * 10**12),
        ("1KiB", 1024),
    ],
)
def test_a_size_is_its_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "six",
        "-1GB",
        "0GB",
        "3QB",
        "GB",
        "8GBs",
        "1e3",
        "nan",
        "inf",
        "8GB free",
        "8GB!",
        "1,5GB",
        "8GB 2",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match=r"max_memory: found .* expected a size such as 8GB .* or 8GiB"):
        parse_size(text, "max_memory")


@pytest.mark.parametrize("text", ["6", "12345", " 0.5 ", "0"])
def test_a_number_without_a_unit_is_refused_with_both_units(text):
    number = text.strip()
    with pytest.raises(ConfigError, match=f"without a unit, expected for example {number}GB .* {number}GiB"):
        parse_size(text)


@pytest.mark.parametrize(("text", "size"), [("8GB", 8_000_000_000), ("8GiB", 8_589_934_592)])
def test_planning_and_prediction_read_the_same_size(text, size, make_predictor):
    assert choose_budget(PRESETS["unet"], text, "cuda").gib * GIB == size
    made = make_predictor()
    assert Predictor(made.model, made.saved, made.labels, device="cpu", max_memory=text).max_memory == size


@pytest.mark.parametrize(
    ("size", "rounded", "at_least"),
    [
        (20_000_000, "20 MB", "0.1 GB"),
        (3_200_000_000, "3.2 GB", "3.2 GB"),
        (3_210_000_000, "3.2 GB", "3.3 GB"),
    ],
)
def test_a_size_as_text(size, rounded, at_least):
    assert format_size(size) == rounded
    assert format_size(size, round_up=True) == at_least


def test_free_memory_respects_a_control_group(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_memory([tmp_path]) == 600000
    # Cached files are dropped when memory is needed.
    (tmp_path / "memory.stat").write_text("anon 90000\ninactive_file 200000\nactive_file 50000\n")
    assert free_memory([tmp_path]) == 850000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory([tmp_path]) > 10**6


def test_free_memory_respects_a_control_group_of_version_1(tmp_path):
    (tmp_path / "memory.limit_in_bytes").write_text("1000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100000\n")
    assert free_memory([tmp_path]) == 400000


def test_a_process_counts_towards_its_control_group_and_all_above_it(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job_7\n")
    names = [folder.relative_to(tmp_path) for folder in control_groups(own, tmp_path)]
    assert list(map(str, names)) == ["slurm/job_7", "slurm", "."]
    own.write_text("3:cpu,cpuacct:/a\n2:memory:/b\n")
    assert [str(f.relative_to(tmp_path)) for f in control_groups(own, tmp_path)] == ["memory/b", "memory"]
    assert list(control_groups(tmp_path / "none", tmp_path)) == []


@pytest.mark.parametrize(
    ("lines", "limit_file", "folders"),
    [
        ("0::/slurm/job_7/step_0\n", "memory.max", ("slurm/job_7/step_0", "slurm/job_7", "slurm", ".")),
        (
            "5:cpuset:/else\n4:memory:/slurm/job_7/step_0\n",
            "memory.limit_in_bytes",
            ("memory/slurm/job_7/step_0", "memory/slurm/job_7", "memory/slurm", "memory"),
        ),
    ],
)
@pytest.mark.parametrize("limited", [0, 1, 2, 3])
def test_the_smallest_limit_of_nested_groups_counts(tmp_path, lines, limit_file, folders, limited):
    """SLURM limits the job, which holds the step that a process runs in; other levels have no limit."""
    (tmp_path / "cgroup").write_text(lines)
    for level, name in enumerate(folders):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        unlimited = "max" if limit_file == "memory.max" else str(2**63 - 4096)
        (tmp_path / name / limit_file).write_text(str(5 * 2**20 if level == limited else unlimited))
        usage = "memory.current" if limit_file == "memory.max" else "memory.usage_in_bytes"
        (tmp_path / name / usage).write_text(str(2**20))
    groups = list(control_groups(tmp_path / "cgroup", tmp_path))
    assert free_memory(groups) == 4 * 2**20


def test_peak_memory_sees_a_large_allocation():
    before = process_memory()
    # Not from the heap, which may have kept as much from earlier tests.
    with PeakMemory() as memory, mmap.mmap(-1, 64 << 20) as block:
        block.write(b"x" * (64 << 20))
        end = time.monotonic() + 60
        while memory.taken <= 32 << 20 and time.monotonic() < end:
            time.sleep(0.01)  # it samples in a thread
    assert memory.peak >= before
    assert memory.taken > 32 << 20


def test_processes_of_one_machine_divide_what_is_free(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6 * GIB, total=8 * GIB))
    assert free_memory([]) == 6 * GIB
    monkeypatch.setitem(memory._sharing, "processes", 1)  # restored at the end
    share_free_memory(4)
    assert free_memory([]) == 6 * GIB // 4
    share_free_memory(0)
    assert free_memory([]) == 6 * GIB


def test_memory_that_torch_keeps_on_a_device_is_free(monkeypatch):
    for name, size in {
        "mem_get_info": (3 * GIB, 80 * GIB),
        "memory_reserved": 5 * GIB,
        "memory_allocated": GIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert memory.free_device_memory(torch.device("cuda")) == 7 * GIB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_given_back_on_each_device(monkeypatch, device):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    memory.release_memory(torch.device(device))
    assert emptied == (["cuda"] if device == "cuda" else [])
