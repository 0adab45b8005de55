"""The machine and the versions that a process runs with, its cores, and its folders in the user's cache."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def usable_cores() -> int:
    """Return the number of cores that this process may use: a scheduler may have given it a part of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # systems without affinity, such as macOS


def installed_version(package: str = "medseg") -> str:
    """Return the version of a package.

    Args:
        package: Name of the package.

    Returns:
        The version; ``unknown`` for a package that is not installed, such as a source folder of medseg.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def user_cache_folder(name: str) -> Path:
    """Return a folder of medseg in the user's cache, ``$XDG_CACHE_HOME`` or ``~/.cache``; it need not exist.

    Args:
        name: What the folder holds, such as ``compiled``.

    Returns:
        The folder. A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification demands.
    """
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (stated if stated.is_absolute() else Path.home() / ".cache") / "medseg" / name


def environment() -> dict[str, object]:
    """Return the versions and the hardware that this process runs with, as plain values."""
    import torch

    packages = ("medseg", "torch", "monai", "numpy", "scipy", "nibabel", "lightning-fabric")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: installed_version(name) for name in packages},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
