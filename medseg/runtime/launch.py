"""The environment that torchrun sets for each process; does not import torch."""

from __future__ import annotations

import os


def process_count() -> int:
    """Return the number of ranks; 1 if torchrun did not start this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def process_rank() -> int:
    """Return the rank of this process; 0 if torchrun did not start it."""
    return int(os.environ.get("RANK", "0"))


def was_started_by_torchrun() -> bool:
    """Return whether torchrun itself started this process, in contrast to another launcher that sets its variables."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def processes_per_machine() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))


def is_main_process() -> bool:
    """Return whether this is the main process (rank 0), the only one that prints and writes."""
    return process_count() == 1 or process_rank() == 0
