"""An object whose unpickling has an effect, for tests of readers that must not unpickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Payload:
    """An object that creates the folder `target` when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)
