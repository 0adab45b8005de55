"""Requirements of compiled networks."""

from __future__ import annotations

import os
import shutil

from medseg.errors import ConfigError
from medseg.runtime.machine import user_cache_folder


def prepare_compilation(field: str) -> None:
    """Check for a C++ compiler, and keep compiled code in the user's cache between runs.

    Args:
        field: Setting that asks for compilation, for the message.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")):
        raise ConfigError(
            f"{field}: found no C++ compiler, expected g++ or clang++. Install one or set {field}=false."
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_folder("compiled")))
