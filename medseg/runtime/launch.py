"""What torchrun tells each process that it starts; free of torch."""

from __future__ import annotations

import os


def process_count() -> int:
    """Processes that train together; 1 when torchrun did not start this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def processes_per_machine() -> int:
    """Those of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))


def is_main_process() -> bool:
    """Whether this is the one process that prints and writes."""
    return process_count() == 1 or int(os.environ["RANK"]) == 0
