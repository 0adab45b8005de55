"""Kill commands and fill their disks, as often as wanted: ``python -m tests.faults --kills 200 --disks 20``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Print one line per trial and a table; return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="number of kills (default: 40)")
    parser.add_argument("--disks", type=int, default=8, help="number of full disks (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all trials (default: 0)")
    parser.add_argument("--jobs", help="names of commands, separated by commas (default: all)")
    parser.add_argument(
        "--results", type=Path, help="file of the trials; those that it holds are not repeated"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder to work in, which is kept (default: a temporary one)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        help="seconds in which all processes must end after a disturbance (default: 10); more on a busy machine",
    )
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", CUDA_VISIBLE_DEVICES="")

    from tests.faults.campaign import run  # loads torch, after the variables are set

    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        names = options.jobs.split(",") if options.jobs else None
        return run(
            folder, options.kills, options.disks, options.seed, names, options.results, options.patience
        )
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
