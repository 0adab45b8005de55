"""Cores of this process, and versions of packages."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import medseg
from medseg.runtime import machine
from medseg.runtime.machine import environment, installed_version, usable_cores, user_cache_folder


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cores_are_those_of_the_process():
    before = os.sched_getaffinity(0)
    assert usable_cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cores_of_the_machine_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_versions_of_packages_that_are_not_installed(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(machine, "version", missing)
    assert installed_version() == "unknown"
    assert set(environment()["packages"].values()) == {"unknown"}
    assert medseg.__version__ == "unknown"


@pytest.mark.parametrize(
    ("stated", "expected"), [("/scratch/cache", "/scratch/cache"), ("", "~/.cache"), ("cache", "~/.cache")]
)
def test_folders_in_the_cache_never_depend_on_the_current_folder(monkeypatch, stated, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert user_cache_folder("compiled") == Path(expected).expanduser() / "medseg" / "compiled"
