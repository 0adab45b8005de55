"""Memory that the process keeps."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from medseg.allocator import kept_memory

BLOCK = 64 << 20


def faults_of_a_block() -> int:
    """Pages, perhaps huge ones, that the system gives anew for a block of 64 MB after a larger one was freed."""
    torch.empty(3 * BLOCK, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(BLOCK, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives freed blocks back")
def test_freed_blocks_stay_within_the_context_and_go_back_after_it():
    with kept_memory():
        assert faults_of_a_block() < 10
    assert faults_of_a_block() > 20
    with kept_memory(False):
        assert faults_of_a_block() > 20
    with kept_memory():
        with kept_memory():
            pass
        assert faults_of_a_block() < 10
    assert faults_of_a_block() > 20


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with kept_memory():
        pass
