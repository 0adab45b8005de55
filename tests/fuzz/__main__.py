"""Read any number of damaged files: ``python -m tests.fuzz --variants 10000``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import lines, run


def main() -> int:
    """Print the answers and the faults; return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=1000, help="number of damaged files (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            options.variants,
            Path(folder),
            options.seed,
            lambda done: print(f"\r{done}", end="", file=sys.stderr, flush=True) if done % 100 == 0 else None,
        )
    print(*lines(result), sep="\n")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
