"""``python -m tests.catalogue [NUMBER ...]``: run the entries of the catalogue and print a table of the answers."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.catalogue.run import Shared, run_entry
from tests.catalogue.table import numbered


def main() -> int:
    """Run entries and return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.catalogue", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="numbers of the entries to run (default: all)")
    parser.add_argument("--verbose", action="store_true", help="print the output of broken promises")
    options = parser.parse_args()
    broken: dict[int, bool] = {}
    skipped: set[int] = set()
    with tempfile.TemporaryDirectory() as name:
        shared = Shared(Path(name))
        for variant, promise in numbered():
            if options.numbers and promise.number not in options.numbers:
                continue
            began = time.monotonic()
            failure = run_entry(promise, variant, Path(name) / f"{promise.number}_{variant}", shared)
            if failure is None and promise.needs_gpu:
                skipped.add(promise.number)
            verdict = (
                "needs a GPU" if promise.needs_gpu else "answered" if failure is None else "NOT ANSWERED"
            )
            broken[promise.number] = broken.get(promise.number, False) or failure is not None
            seconds = time.monotonic() - began
            print(
                f"{promise.number:4}  {verdict:12}  {seconds:5.1f} s  {promise.kind:9}  {promise.case}",
                flush=True,
            )
            if failure is not None:
                print("      " + (failure if options.verbose else failure.splitlines()[0]), flush=True)
    failed = [number for number, bad in broken.items() if bad]
    answered = len(broken) - len(failed) - len(skipped)
    print(
        f"{answered} of {len(broken)} entries answered; {len(skipped)} need a GPU; not answered: {failed or 'none'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
