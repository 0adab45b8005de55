"""Memory that the process keeps."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from medseg.runtime.glibc_memory import keep_freed_memory

# In a process of its own: what other tests have freed would serve as well.
SCRIPT = """
import json, resource
import torch
from medseg.runtime.glibc_memory import keep_freed_memory

def faults_of_a_block():
    '''Pages, perhaps huge ones, that the system gives anew for a block of 64 MB after a larger one was freed.'''
    torch.empty(192 << 20, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keep_freed_memory():
    kept = [faults_of_a_block()]
given_back = [faults_of_a_block()]
with keep_freed_memory(False):
    given_back.append(faults_of_a_block())
with keep_freed_memory():
    with keep_freed_memory():
        pass
    kept.append(faults_of_a_block())
given_back.append(faults_of_a_block())
print(json.dumps([kept, given_back]))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives freed blocks back")
def test_freed_blocks_are_kept_in_the_context_and_released_after_it():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, given_back = json.loads(done.stdout)
    assert max(kept) < 10 < 20 < min(given_back)


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with keep_freed_memory():
        pass
